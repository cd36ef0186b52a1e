// The real gRPC server over an engine whose steps end when the test says, in this process.
#pragma once

#include "common/clock.h"
#include "server/api/service_context.h"
#include "server/grpc/grpc_server.h"
#include "tests/engine/stepped_engine.h"

#include <cstdint>
#include <memory>

namespace grpc {
class Channel;
}  // namespace grpc

namespace dsa::testing {

// Loopback, any free port.
GrpcServerConfig TestListenConfig();

struct TestServerOptions {
  EngineConfig engine = TestEngineConfig();
  GrpcServerConfig listen = TestListenConfig();
  SlowClientLimits slow_client = {};
  const Tokenizer* tokenizer = nullptr;  // null: ids only
  // Of everything but the engine, and the engine's; both outlive the server.  Null: the machine's.
  const Clock* clock = nullptr;
  const Clock* engine_clock = nullptr;
};

class TestServer final {
 public:
  TestServer() : TestServer(TestServerOptions{}) {}
  explicit TestServer(const TestServerOptions& options);
  ~TestServer();  // lets every step end, aborts what is live
  TestServer(const TestServer&) = delete;
  TestServer& operator=(const TestServer&) = delete;

  StepControl& steps() { return engine_.steps(); }
  EngineLoop& engine() { return engine_.loop(); }
  ServiceContext& context() { return *context_; }
  GrpcServer& server() { return *server_; }

  std::int64_t port() const { return server_->port(); }
  // A connection of its own.
  std::shared_ptr<grpc::Channel> NewChannel() const;

  // As `dsa serve` does at SIGTERM: refuses, waits for what is live, aborts the rest, stops.
  void Drain(std::int64_t limit_us);

  bool BecomesQuiet() const { return engine_.BecomesQuiet(); }

 private:
  const SteadyClock clock_;
  SteppedEngine engine_;
  std::unique_ptr<ServiceContext> context_;
  std::unique_ptr<GrpcServer> server_;
};

}  // namespace dsa::testing
