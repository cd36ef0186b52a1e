// The real gRPC server over the real engine, in this process, with an executor whose steps end when
// the test says: for everything about calls, time and load that needs no model.
//
// Token i of a reply is (prompt length + i) % 50, its text one letter.  Nothing ends a reply but
// max_tokens.
#pragma once

#include "common/clock.h"
#include "server/api/service_context.h"
#include "server/engine/engine_loop.h"
#include "server/grpc/grpc_server.h"
#include "tests/engine/step_control.h"
#include "tests/engine/testing.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace grpc {
class Channel;
}  // namespace grpc

namespace dsa::testing {

// 16 sequences run, 64 wait; 4096 tokens of context, room for 16 such sequences.
EngineConfig TestEngineConfig();
// Loopback, any free port.
GrpcServerConfig TestListenConfig();

struct TestServerOptions {
  EngineConfig engine = TestEngineConfig();
  GrpcServerConfig listen = TestListenConfig();
  SlowClientLimits slow_client = {};
  const Tokenizer* tokenizer = nullptr;  // null: ids only
};

class TestServer final {
 public:
  TestServer() : TestServer(TestServerOptions{}) {}
  explicit TestServer(const TestServerOptions& options);
  ~TestServer();  // lets every step end, aborts what is live
  TestServer(const TestServer&) = delete;
  TestServer& operator=(const TestServer&) = delete;

  StepControl& steps() { return steps_; }
  EngineLoop& engine() { return *engine_; }
  ServiceContext& context() { return *context_; }
  GrpcServer& server() { return *server_; }

  std::int64_t port() const { return server_->port(); }
  // A connection of its own.
  std::shared_ptr<grpc::Channel> NewChannel() const;

  // As `dsa serve` does at SIGTERM: refuses, waits for what is live, aborts the rest, stops.
  void Drain(std::int64_t limit_us);

  // Waits until nothing is live and no block is referenced; false after 20 s.
  bool BecomesQuiet() const;

 private:
  const SteadyClock clock_;
  StepControl steps_;
  ScriptedExecutor executor_;
  std::unique_ptr<TextDecoderFactory> decoders_;
  std::unique_ptr<EngineLoop> engine_;
  std::unique_ptr<ServiceContext> context_;
  std::unique_ptr<GrpcServer> server_;
};

// Waits until `condition` holds, asking every millisecond; false after 20 s.
bool Eventually(const std::function<bool()>& condition);

// Lets time pass in which something must not happen.
void Pause(std::chrono::microseconds duration);

}  // namespace dsa::testing
