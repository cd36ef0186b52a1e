// Deadlines, clients that do not read, and places: what depends on time, on steps that take what
// the test says.
#include "proto/completion.grpc.pb.h"
#include "tests/api/test_server.h"
#include "tests/log_capture.h"
#include "tests/moved_clock.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

namespace dsa::time_test {
namespace {

using std::chrono::milliseconds;
using testing::Eventually;
using testing::LogCapture;
using testing::MovedClock;
using testing::Pause;
using testing::TestServer;
using testing::TestServerOptions;

v1::CompletionRequest Tokens(const std::string& id, int max_tokens) {
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_token_ids()->add_ids(8);
  request.mutable_stop()->set_max_tokens(max_tokens);
  request.set_request_id(id);
  return request;
}

grpc::Status Complete(const TestServer& server, const v1::CompletionRequest& request,
                      milliseconds deadline = std::chrono::seconds(30)) {
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + deadline);
  v1::CompletionResponse response;
  return v1::CompletionService::NewStub(server.NewChannel())->Complete(&rpc, request, &response);
}

// A connection whose streams take a few hundred bytes until they are read.
std::shared_ptr<grpc::Channel> NarrowChannel(const TestServer& server) {
  grpc::ChannelArguments arguments;
  arguments.SetInt("grpc.use_local_subchannel_pool", 1);
  arguments.SetInt("grpc.http2.bdp_probe", 0);
  arguments.SetInt("grpc.http2.lookahead_bytes", 5);
  return grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", server.port()),
                                   grpc::InsecureChannelCredentials(), arguments);
}

// A stream that is read when the test says.
struct Stream {
  // A client of ordinary size lets hundreds of kilobytes come before it is read.
  Stream(const TestServer& server, const v1::CompletionRequest& request)
      : stub(v1::CompletionService::NewStub(NarrowChannel(server))) {
    rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    reader = stub->CompleteStream(&rpc, request);
  }
  grpc::Status ReadAll() {
    for (v1::CompletionStreamResponse part; reader->Read(&part);) {
      ids += part.token_ids_size();
    }
    return reader->Finish();
  }

  grpc::ClientContext rpc;
  std::unique_ptr<v1::CompletionService::Stub> stub;
  std::unique_ptr<grpc::ClientReader<v1::CompletionStreamResponse>> reader;
  std::atomic<int> ids{0};
};

TEST_CASE("an idle server takes a short deadline although its last step was long", "[time]") {
  constexpr std::chrono::hours kStep{1};
  MovedClock clock;
  TestServerOptions options;
  options.clock = &clock;
  options.engine_clock = &clock;
  TestServer server(options);
  server.steps().Hold();
  std::thread slow([&] { CHECK(Complete(server, Tokens("slow", 1), 2 * kStep).ok()); });
  CHECK(server.steps().WaitForStep(1));
  clock.Move(kStep);
  server.steps().Resume();
  slow.join();
  REQUIRE(server.engine().Load().last_step_us >= std::chrono::microseconds(kStep).count());
  CHECK(Complete(server, Tokens("quick", 1)).ok());  // in half a minute
  // What has expired is still refused, by whoever notices first.
  CHECK(Complete(server, Tokens("late", 1), milliseconds(-1)).error_code() ==
        grpc::StatusCode::DEADLINE_EXCEEDED);
}

// About 250 bytes a token, so that one is more than a narrow connection takes.
v1::CompletionRequest Heavy(const std::string& id, int max_tokens) {
  v1::CompletionRequest request = Tokens(id, max_tokens);
  request.set_logprobs(true);
  request.set_top_logprobs(20);
  return request;
}

// Far longer than this machine takes for anything: it passes on a clock that the test moves.
constexpr std::chrono::minutes kStalled{1};

TestServerOptions DroppingBy(const MovedClock& clock) {
  TestServerOptions options;
  options.slow_client = {.pending_bytes_max = std::int64_t{1} << 40,
                         .stalled_us_max = std::chrono::microseconds(kStalled).count()};
  options.clock = &clock;
  return options;
}

TEST_CASE("a stream that nobody reads is dropped by time alone, whatever waits behind its write",
          "[time]") {
  const LogCapture log;
  MovedClock clock;
  {
    TestServer server(DroppingBy(clock));
    Stream stream(server, Heavy("unread", 4000));
    REQUIRE(Eventually([&] { return server.engine().Load().tokens_computed > 2000; }));
    server.steps().Hold();  // from now on no token comes
    clock.Move(kStalled);
    Pause(milliseconds(1500));
    CHECK(stream.ReadAll().error_code() == grpc::StatusCode::CANCELLED);
    CHECK(stream.ids < 2000);
    server.steps().Resume();
    CHECK(server.BecomesQuiet());
  }
  const auto lines = log.Lines("unread");
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].find("code=\"RESOURCE_EXHAUSTED\"  error=\"client too slow") != std::string::npos);
}

TEST_CASE("an answer whose last message nobody takes is dropped, too", "[time]") {
  const LogCapture log;
  MovedClock clock;
  TestServer server(DroppingBy(clock));
  Stream stream(server, Heavy("untaken", 1));
  // The engine is done and what it said lies in the call: no slot is held, but the call.
  REQUIRE(Eventually([&] { return server.engine().Load().requests_finished == 1; }));
  CHECK(Eventually([&] {
    clock.Move(kStalled);  // again: the call may not have heard of the end yet
    return log.Lines("untaken").size() == 1;
  }));
  CHECK(stream.ReadAll().error_code() == grpc::StatusCode::CANCELLED);
  CHECK(log.Lines("untaken")[0].find("client too slow") != std::string::npos);
}

TEST_CASE("a stream with nothing to write is never dropped", "[time]") {
  MovedClock clock;
  TestServer server(DroppingBy(clock));
  server.steps().Hold();
  Stream stream(server, Tokens("silent", 5));
  REQUIRE(server.steps().WaitForStep(1));
  Stream queued(server, Tokens("queued", 5));
  // What is said in the silence is read at once.
  std::thread first([&] { CHECK(stream.ReadAll().ok()); });
  std::thread second([&] { CHECK(queued.ReadAll().ok()); });
  CHECK(Eventually([&] { return server.engine().Load().waiting == 1; }));
  server.steps().LetPass(2);  // a token for the first, one for each
  CHECK(server.steps().WaitForStep(3));
  CHECK(Eventually([&] { return stream.ids == 2 && queued.ids == 1; }));
  for (int i = 0; i < 10; ++i) {  // a write that has just ended must not have lasted so long
    clock.Move(kStalled / 4);
    Pause(milliseconds(100));
  }
  server.steps().Resume();
  first.join();
  second.join();
  CHECK(stream.ids == 5);
  CHECK(queued.ids == 5);
}

// One request that runs and eight behind it, whose deadlines all pass while a step is held; how
// many clients were told so.
int LetDeadlinesPass(int queued) {
  constexpr milliseconds kTimeout{3000};
  MovedClock clock;
  TestServerOptions options;
  options.clock = &clock;
  options.engine_clock = &clock;
  options.engine.scheduler.sequences_max = 1;
  TestServer server(options);
  server.steps().Hold();
  std::atomic<int> late{0};
  std::vector<std::thread> clients;
  const auto ask = [&](const std::string& id) {
    const grpc::Status status = Complete(server, Tokens(id, 50), kTimeout);
    late += status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ? 1 : 0;
  };
  clients.emplace_back(ask, "runs");
  REQUIRE(server.steps().WaitForStep(1));
  for (int i = 0; i < queued; ++i) {
    clients.emplace_back(ask, fmt::format("waits-{}", i));
  }
  CHECK(Eventually([&] { return server.engine().Load().waiting == queued; }));
  // A request that took longer to the server than is forgiven has a later deadline there than its
  // client, who then gives up while it has time left: nobody could tell that from a cancellation.
  clock.Move(kTimeout / 2);
  for (std::thread& client : clients) {
    client.join();
  }
  server.steps().Resume();
  CHECK(server.BecomesQuiet());
  return late;
}

TEST_CASE("every deadline that passes is one true line", "[time]") {
  constexpr int kQueued = 8;
  const LogCapture log;
  CHECK(LetDeadlinesPass(kQueued) == 1 + kQueued);
  CHECK(log.Lines("code=\"DEADLINE_EXCEEDED\"").size() == 1 + kQueued);
  CHECK(log.Lines("error=\"deadline expired in queue\"  finish=\"deadline\"").size() == kQueued);
  const auto running = log.Lines("error=\"deadline expired\"  finish=\"deadline\"");
  REQUIRE(running.size() == 1);
  CHECK(running[0].find("id=\"runs\"") != std::string::npos);
  CHECK(running[0].find("completion_tokens=1 ") != std::string::npos);
}

TEST_CASE("with one slot and one place two simultaneous calls are both taken", "[time]") {
  TestServerOptions options;
  options.engine.scheduler.sequences_max = 1;
  options.engine.scheduler.waiting_max = 1;
  TestServer server(options);
  std::atomic<int> refused{0};
  const auto ask = [&](const std::string& id) {
    const grpc::Status status = Complete(server, Tokens(id, 2));
    refused += status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED ? 1 : 0;
    return status.ok();
  };
  for (int round = 0; round < 50; ++round) {
    CAPTURE(round);
    std::atomic<int> fine{0};
    std::thread first([&] { fine += ask("first") ? 1 : 0; });
    std::thread second([&] { fine += ask("second") ? 1 : 0; });
    first.join();
    second.join();
    CHECK(fine == 2);
    // What has run is gone before the next two come.
    REQUIRE(server.BecomesQuiet());
  }
  server.steps().Hold();
  std::thread first([&] { ask("first"); });
  std::thread second([&] { ask("second"); });
  CHECK(Eventually([&] { return server.engine().Load().waiting == 1; }));
  CHECK_FALSE(ask("third"));
  CHECK(refused == 1);
  server.steps().Resume();
  first.join();
  second.join();
}

// The tokens of a stream until it is enough.
std::int64_t Read(const TestServer& server, const v1::CompletionRequest& request,
                  const std::atomic<bool>& enough) {
  const auto stub = v1::CompletionService::NewStub(server.NewChannel());
  grpc::ClientContext rpc;
  const auto reader = stub->CompleteStream(&rpc, request);
  std::int64_t tokens = 0;
  for (v1::CompletionStreamResponse part; reader->Read(&part);) {
    tokens += part.token_ids_size();
    if (enough) {
      rpc.TryCancel();
    }
  }
  reader->Finish();
  return tokens;
}

v1::CompletionRequest Prompt(const std::string& id, int tokens, int first) {
  v1::CompletionRequest request = Tokens(id, 1);
  request.mutable_token_ids()->clear_ids();
  for (int i = 0; i < tokens; ++i) {
    request.mutable_token_ids()->add_ids(first + i);
  }
  return request;
}

// By what the steps take that the executor was given, not by what this machine makes of them: a
// stream has a token of every step.
TEST_CASE("a long prompt holds up neither streams nor a newcomer", "[time]") {
  constexpr int kStreams = 4;
  constexpr int kLong = 3000;
  constexpr milliseconds kTarget{50};
  TestServerOptions options;
  options.engine.scheduler.step_time_target_us = 50'000;
  TestServer server(options);
  server.steps().SetDuration(milliseconds(5));
  server.steps().SetRowDuration(std::chrono::microseconds(500));
  REQUIRE(Complete(server, Prompt("warm-up", 100, 90'000)).ok());
  std::atomic<bool> enough{false};
  std::vector<std::int64_t> tokens(kStreams);
  std::vector<std::thread> streams;
  streams.reserve(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    streams.emplace_back(
        [&, i] { tokens[i] = Read(server, Tokens(fmt::format("stream-{}", i), 2000), enough); });
  }
  CHECK(Eventually([&] { return server.engine().Load().running == kStreams; }));
  std::atomic<bool> long_ended{false};
  const auto begin = server.steps().durations().size();
  std::thread prompt([&] {
    CHECK(Complete(server, Prompt("long", kLong, 10'000)).ok());
    long_ended = true;
  });
  CHECK(Eventually([&] { return server.engine().Load().running == kStreams + 1; }));
  Pause(milliseconds(300));
  const auto before = server.steps().durations().size();
  CHECK(Complete(server, Prompt("newcomer", 10, 50'000)).ok());
  const std::vector<std::chrono::microseconds> until = server.steps().durations();
  const auto taken = std::accumulate(until.begin() + static_cast<std::ptrdiff_t>(before),
                                     until.end(), std::chrono::microseconds(0));
  CHECK(taken < 10 * kTarget);
  CHECK_FALSE(long_ended);
  prompt.join();
  std::vector<std::chrono::microseconds> steps = server.steps().durations();
  enough = true;
  for (int i = 0; i < kStreams; ++i) {
    streams[i].join();
    CHECK(tokens[i] >= static_cast<std::int64_t>(steps.size() - begin) - 2);
  }
  steps.erase(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(begin));
  std::sort(steps.begin(), steps.end());
  REQUIRE(steps.size() > 25);
  CHECK(steps[steps.size() * 99 / 100] < 2 * kTarget);
}

// A measurement, run by name alone: bench/results says what it gave.
TEST_CASE("cancel to free of 2,000 streams", "[.figures]") {
  constexpr int kCalls = 2000;
  constexpr milliseconds kStep{20};
  TestServer server;
  server.steps().SetDuration(kStep);
  const auto stub = v1::CompletionService::NewStub(server.NewChannel());
  std::vector<double> times_ms;
  for (int i = 0; i < kCalls; ++i) {
    grpc::ClientContext rpc;
    const auto reader = stub->CompleteStream(&rpc, Tokens("", 4000));
    REQUIRE(Eventually([&] { return server.engine().Load().running == 1; }));
    Pause(std::chrono::microseconds(i * 7919 % 20'000));  // any moment of a step
    const auto start = std::chrono::steady_clock::now();
    rpc.TryCancel();
    while (server.engine().Load().blocks_referenced > 0) {
      Pause(std::chrono::microseconds(100));
    }
    times_ms.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
            .count());
    CHECK(reader->Finish().error_code() == grpc::StatusCode::CANCELLED);
    REQUIRE(Eventually([&] { return server.engine().Load().running == 0; }));
  }
  std::sort(times_ms.begin(), times_ms.end());
  fmt::print(
      "steps of {} ms; cancel to free, ms: p50 {:.1f}, p99 {:.1f}, p99.9 {:.1f}, max {:.1f}\n",
      kStep.count(), times_ms[kCalls / 2], times_ms[kCalls * 99 / 100],
      times_ms[kCalls * 999 / 1000], times_ms.back());
}

TEST_CASE("a drain waits for no more of a long prompt than a step", "[time]") {
  TestServerOptions options;
  options.engine.scheduler.step_time_target_us = 50'000;
  TestServer server(options);
  server.steps().SetRowDuration(std::chrono::microseconds(1000));
  std::thread prompt([&] {
    CHECK(Complete(server, Prompt("long", 4000, 1)).error_code() == grpc::StatusCode::UNAVAILABLE);
  });
  CHECK(Eventually([&] { return server.engine().Load().tokens_computed > 500; }));
  server.steps().Hold();
  std::size_t before = 0;  // and the one that is held, which has begun
  CHECK(Eventually([&] {
    before = server.steps().durations().size();
    return server.steps().begun() == static_cast<std::int64_t>(before) + 1;
  }));
  std::thread drain([&] { server.Drain(0); });
  CHECK(Eventually([&] { return server.engine().Load().draining; }));
  Pause(milliseconds(500));  // then it gives up the rest
  server.steps().Resume();
  drain.join();
  const std::vector<std::chrono::microseconds> steps = server.steps().durations();
  prompt.join();
  // The one that was held, and one more where the end is told to the next.
  CHECK(steps.size() - before <= 2);
  CHECK(steps.back() <= milliseconds(4 * 50));
}

}  // namespace
}  // namespace dsa::time_test
