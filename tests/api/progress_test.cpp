// Who asks how the server does is told the truth: load from the moment a request is accepted, and
// health that a watchdog turns.
#include "proto/admin.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "server/watched_parts.h"
#include "tests/api/test_server.h"
#include "tests/http/raw_client.h"
#include "tests/log_capture.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include <catch2/catch.hpp>
#include <grpcpp/channel.h>

namespace dsa::progress_test {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using testing::Eventually;
using testing::TestServer;
using testing::TestServerOptions;

v1::Load LoadOf(const TestServer& server) {
  grpc::ClientContext rpc;
  v1::Load load;
  CHECK(v1::AdminService::NewStub(server.NewChannel())->GetLoad(&rpc, {}, &load).ok());
  return load;
}

Request ShortRequest(TestServer& server, const std::string& id) {
  Request request;
  request.id = server.engine().NextRequestId();
  request.external_id = id;
  request.sampling.temperature = 0.0F;
  request.stop.max_tokens = 2;
  request.prompt = {TokenId{7}, TokenId{8}};
  return request;
}

// Waits in OnDelta until it is let go.
class StuckSink final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& /*delta*/) override {
    while (held) {
      testing::Pause(std::chrono::milliseconds(1));
    }
  }
  std::atomic<bool> held{true};
};

TEST_CASE("a request is waiting or running from when it is accepted to its end", "[progress]") {
  TestServer server;
  server.steps().Hold();
  constexpr int kRequests = 20;  // 16 of them run at once
  std::atomic<bool> ended{false};
  std::atomic<bool> lost{false};
  std::atomic<int> accepted{0};
  std::thread asker([&] {
    while (!ended) {
      const int before = accepted;
      const EngineLoad load = server.engine().Load();
      lost = lost || load.waiting + load.running < before;
    }
  });
  const auto sink = std::make_shared<StuckSink>();
  sink->held = false;
  for (int i = 0; i < kRequests; ++i) {
    CHECK(server.engine().Submit(ShortRequest(server, std::to_string(i)), sink).ok());
    ++accepted;
  }
  REQUIRE(server.steps().WaitForStep(1));
  // In the first step, whatever it takes.
  const v1::Load first = LoadOf(server);
  CHECK(first.running() >= 1);
  CHECK(first.running() + first.waiting() == kRequests);
  CHECK(first.blocks_referenced() >= 1);
  server.steps().LetPass(1);
  REQUIRE(server.steps().WaitForStep(2));
  const v1::Load second = LoadOf(server);
  CHECK(second.running() == 16);
  CHECK(second.waiting() == kRequests - 16);
  ended = true;
  asker.join();
  CHECK_FALSE(lost);
  server.steps().Resume();
  CHECK(server.BecomesQuiet());
}

TEST_CASE("the engine says that it is at work while a step does not end", "[progress]") {
  TestServer server;
  CHECK(Eventually([&] { return !server.engine().EngineActivity().waiting; }));
  CHECK_FALSE(server.engine().PumpActivity().waiting);
  server.steps().Hold();
  const auto sink = std::make_shared<StuckSink>();
  sink->held = false;
  REQUIRE(server.engine().Submit(ShortRequest(server, "a"), sink).ok());
  REQUIRE(server.steps().WaitForStep(1));
  const LoopActivity before = server.engine().EngineActivity();
  testing::Pause(std::chrono::milliseconds(30));
  CHECK(before.waiting);
  CHECK(server.engine().EngineActivity().waiting);
  CHECK(server.engine().EngineActivity().done == before.done);
  CHECK_FALSE(server.engine().PumpActivity().waiting);
  // A step that is known to take long gets an estimate.
  server.steps().SetDuration(std::chrono::milliseconds(40));
  server.steps().LetPass(1);
  REQUIRE(server.steps().WaitForStep(2));
  CHECK(server.engine().EngineActivity().done > before.done);
  CHECK(server.engine().EngineActivity().estimate_us >= 30'000);
  server.steps().Resume();
  CHECK(server.BecomesQuiet());
  CHECK(Eventually([&] { return !server.engine().EngineActivity().waiting; }));
}

TEST_CASE("the pump says that it is at work while a sink does not return", "[progress]") {
  TestServer server;
  const auto sink = std::make_shared<StuckSink>();
  REQUIRE(server.engine().Submit(ShortRequest(server, "a"), sink).ok());
  CHECK(Eventually([&] { return server.engine().PumpActivity().waiting; }));
  const std::int64_t done = server.engine().PumpActivity().done;
  testing::Pause(std::chrono::milliseconds(30));
  CHECK(server.engine().PumpActivity().waiting);
  CHECK(server.engine().PumpActivity().done == done);
  sink->held = false;
  CHECK(Eventually([&] { return server.engine().PumpActivity().done == done + 2; }));
  CHECK(Eventually([&] { return !server.engine().PumpActivity().waiting; }));
}

TEST_CASE("health follows a stall, and a drain outlasts it", "[progress]") {
  TestServer server;
  const auto stub = Health::NewStub(server.NewChannel());
  const auto state = [&](const std::string& service) {
    grpc::ClientContext rpc;
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    CHECK(stub->Check(&rpc, request, &response).ok());
    return response.status();
  };
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  const auto watch = stub->Watch(&rpc, HealthCheckRequest());
  const auto next = [&] {
    HealthCheckResponse response;
    return watch->Read(&response) ? response.status() : HealthCheckResponse::UNKNOWN;
  };
  CHECK(next() == HealthCheckResponse::SERVING);
  server.server().SetStalled(true);
  CHECK(next() == HealthCheckResponse::NOT_SERVING);
  CHECK(state("") == HealthCheckResponse::NOT_SERVING);
  CHECK(state("liveness") == HealthCheckResponse::SERVING);
  server.server().SetStalled(false);
  CHECK(next() == HealthCheckResponse::SERVING);
  CHECK(state("readiness") == HealthCheckResponse::SERVING);
  server.server().BeginDrain();
  CHECK(next() == HealthCheckResponse::NOT_SERVING);
  server.server().SetStalled(true);
  server.server().SetStalled(false);
  CHECK(state("") == HealthCheckResponse::NOT_SERVING);
  rpc.TryCancel();
  CHECK(next() == HealthCheckResponse::UNKNOWN);
  (void)watch->Finish();
}

// Whoever asks for the time waits while it is held.
class HeldClock final : public Clock {
 public:
  MonotonicUs NowUs() const override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !held_; });
    return SteadyClock().NowUs();
  }
  void Hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool held_ = false;  // guarded by mutex_
};

TEST_CASE("an acceptor that stands still turns the health of both servers until it gets on",
          "[progress]") {
  const testing::LogCapture log;
  HeldClock clock;
  const SteadyClock http_clock;
  TestServerOptions options;
  options.clock = &clock;
  TestServer server(options);
  const auto context = testing::MakeTestContext(server.engine(), http_clock, nullptr, {});
  HttpServerConfig listen;
  listen.port = 0;
  Result<std::unique_ptr<HttpServer>> http = HttpServer::Start(listen, *context);
  if (!http.ok()) {
    WARN("this build has no HTTP");
    return;
  }
  const auto ready = [&] {
    return testing::Exchange(http.value()->port(), testing::Get("/ready")).status;
  };
  const auto watchdog = std::move(WatchServer({.engine = server.engine(),
                                               .grpc = server.server(),
                                               .http = http.value().get()},
                                              {.tick = std::chrono::milliseconds(10),
                                               .limit = std::chrono::milliseconds(500),
                                               .on_change = {},
                                               .on_lost = [] { FAIL("nothing vital stalls"); }}))
                            .value();
  const auto stub = Health::NewStub(server.NewChannel());
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  const auto watch = stub->Watch(&rpc, HealthCheckRequest());
  const auto next = [&] {
    HealthCheckResponse response;
    return watch->Read(&response) ? response.status() : HealthCheckResponse::UNKNOWN;
  };
  CHECK(next() == HealthCheckResponse::SERVING);
  CHECK(ready() == 200);
  clock.Hold(true);
  // It wakes for this client, and gets no further.
  testing::RawClient client(server.port());
  CHECK(Eventually([&] { return ready() == 503; }));
  CHECK(log.Lines("part=\"acceptor\"").size() == 1);
  clock.Hold(false);
  CHECK(next() == HealthCheckResponse::NOT_SERVING);
  CHECK(next() == HealthCheckResponse::SERVING);
  CHECK(Eventually([&] { return ready() == 200; }));
  rpc.TryCancel();
  CHECK(next() == HealthCheckResponse::UNKNOWN);
  (void)watch->Finish();
}

}  // namespace
}  // namespace dsa::progress_test
