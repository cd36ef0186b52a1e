// Every way in which a call ends, at every moment of it.
#include "common/prng.h"
#include "proto/completion.grpc.pb.h"
#include "tests/api/relay.h"
#include "tests/api/test_server.h"
#include "tests/log_capture.h"

#include <array>
#include <atomic>
#include <future>
#include <optional>
#include <thread>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

namespace dsa::endings_test {
namespace {

using testing::Eventually;
using testing::LogCapture;
using testing::Pause;
using testing::Relay;
using testing::TestServer;
using testing::TestServerOptions;

enum class Shape { kWhole, kStream };
enum class Event { kCancel, kDeadline, kDisconnect, kAbort, kDrain, kError };
// kAfter: the engine has ended the request, and the call has not heard of it yet.
enum class Moment { kQueued, kFirst, kMiddle, kLast, kAfter };

constexpr std::array kShapes = {Shape::kWhole, Shape::kStream};
constexpr std::array kEvents = {Event::kCancel, Event::kDeadline, Event::kDisconnect,
                                Event::kAbort,  Event::kDrain,    Event::kError};
constexpr std::array kMoments = {Moment::kQueued, Moment::kFirst, Moment::kMiddle, Moment::kLast,
                                 Moment::kAfter};

// What a deadline leaves for a call to come to its moment.
#ifdef __SANITIZE_ADDRESS__
constexpr std::chrono::milliseconds kDeadline{1200};
#else
constexpr std::chrono::milliseconds kDeadline{400};
#endif
// In which a server hears that a client has left.
constexpr std::chrono::milliseconds kHeard{20};

v1::CompletionRequest Tokens(const std::string& id, int max_tokens) {
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_token_ids()->add_ids(8);
  request.mutable_stop()->set_max_tokens(max_tokens);
  request.set_request_id(id);
  return request;
}

// A call of three tokens on a thread of its own.
class Victim final {
 public:
  Victim(Shape shape, const std::string& id, const std::shared_ptr<grpc::Channel>& channel,
         std::optional<std::chrono::milliseconds> deadline)
      : stub_(v1::CompletionService::NewStub(channel)) {
    rpc_.set_deadline(std::chrono::system_clock::now() +
                      deadline.value_or(std::chrono::seconds(30)));
    thread_ = std::thread([this, shape, request = Tokens(id, 3)] {
      if (shape == Shape::kWhole) {
        v1::CompletionResponse response;
        status_ = stub_->Complete(&rpc_, request, &response);
        finish_ = response.finish_reason();
        return;
      }
      const auto reader = stub_->CompleteStream(&rpc_, request);
      for (v1::CompletionStreamResponse part; reader->Read(&part);) {
        finish_ = part.finish_reason();
      }
      status_ = reader->Finish();
    });
  }
  ~Victim() { Wait(); }
  Victim(const Victim&) = delete;
  Victim& operator=(const Victim&) = delete;

  void Cancel() { rpc_.TryCancel(); }
  void Wait() {
    if (thread_.joinable()) {
      thread_.join();
    }
  }
  // Once waited for:
  const grpc::Status& status() const { return status_; }
  v1::FinishReason finish() const { return finish_; }

 private:
  grpc::ClientContext rpc_;
  std::unique_ptr<v1::CompletionService::Stub> stub_;
  grpc::Status status_;
  v1::FinishReason finish_ = v1::FINISH_REASON_UNSPECIFIED;
  std::thread thread_;
};

// Holds the pump, and with it all deltas behind its own, until it is told to go on.
class Plug final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& /*delta*/) override { go_on_.get_future().wait(); }
  void GoOn() { go_on_.set_value(); }

 private:
  std::promise<void> go_on_;
};

struct Case {
  Shape shape;
  Event event;
  Moment moment;

  std::string id() const {
    return fmt::format("case-{}-{}-{}", static_cast<int>(shape), static_cast<int>(event),
                       static_cast<int>(moment));
  }
};

// Brings a victim to its moment, lets the event happen, and lets the server go on.
class Play final {
 public:
  explicit Play(const Case& one) : case_(one), server_(Options(one)), relay_(server_.port()) {
    server_.steps().Hold();
  }

  void Run() {
    if (case_.moment == Moment::kQueued) {
      front_.emplace(Shape::kStream, "front", server_.NewChannel(), std::nullopt);
      REQUIRE(server_.steps().WaitForStep(1));
    }
    victim_.emplace(case_.shape, case_.id(), Channel(),
                    case_.event == Event::kDeadline ? std::optional(kDeadline) : std::nullopt);
    BringToMoment();
    Happen();
    server_.steps().Resume();
    plug_->GoOn();
    victim_->Wait();
    if (drain_.joinable()) {
      drain_.join();
    }
    if (front_) {
      front_->Wait();
    }
  }

  const Victim& victim() const { return *victim_; }
  TestServer& server() { return server_; }

 private:
  static TestServerOptions Options(const Case& one) {
    TestServerOptions options;
    // The front alone, or the victim and the plug.
    options.engine.scheduler.sequences_max = one.moment == Moment::kQueued ? 1 : 2;
    return options;
  }

  std::shared_ptr<grpc::Channel> Channel() const {
    return case_.event == Event::kDisconnect
               ? grpc::CreateChannel(fmt::format("127.0.0.1:{}", relay_.port()),
                                     grpc::InsecureChannelCredentials())
               : server_.NewChannel();
  }

  void BringToMoment() {
    testing::StepControl& steps = server_.steps();
    switch (case_.moment) {
      case Moment::kQueued:
        REQUIRE(Eventually([this] { return server_.engine().Load().waiting == 1; }));
        return;
      case Moment::kFirst: REQUIRE(steps.WaitForStep(1)); return;
      case Moment::kMiddle:
        steps.LetPass(1);
        REQUIRE(steps.WaitForStep(2));
        return;
      case Moment::kLast:
        steps.LetPass(2);
        REQUIRE(steps.WaitForStep(3));
        return;
      case Moment::kAfter:
        REQUIRE(steps.WaitForStep(1));
        REQUIRE(server_.engine().Submit(testing::MakeRequest("plug", 2, 1), plug_).ok());
        steps.LetPass(3);  // the plug's only token comes in the second step
        REQUIRE(Eventually([this] { return server_.engine().Load().requests_finished == 2; }));
        return;
    }
  }

  void Happen() {
    switch (case_.event) {
      case Event::kCancel:
        victim_->Cancel();
        victim_->Wait();
        Pause(kHeard);
        return;
      case Event::kDeadline:
        victim_->Wait();
        Pause(kHeard);
        return;
      case Event::kDisconnect:
        relay_.Cut();
        victim_->Wait();
        Pause(kHeard);
        return;
      case Event::kAbort: server_.engine().Abort(case_.id()); return;
      case Event::kDrain:
        server_.server().BeginDrain();
        drain_ = std::thread([this] { server_.engine().Drain(0); });
        REQUIRE(Eventually([this] { return server_.engine().Load().draining; }));
        Pause(kHeard);  // until the rest is aborted
        return;
      case Event::kError: FailOneStep(); return;
    }
  }

  // The step that is held fails.
  void FailOneStep() {
    testing::StepControl& steps = server_.steps();
    steps.FailRow(0);
    if (case_.moment != Moment::kAfter) {
      const std::int64_t before = server_.engine().Load().requests_finished;
      steps.LetPass(1);
      REQUIRE(Eventually([&] { return server_.engine().Load().requests_finished > before; }));
    }
    steps.FailRow(-1);
  }

  const Case case_;
  TestServer server_;
  Relay relay_;
  std::shared_ptr<Plug> plug_ = std::make_shared<Plug>();
  std::thread drain_;
  std::optional<Victim> front_;
  std::optional<Victim> victim_;
};

struct Expected {
  grpc::StatusCode client;
  const char* logged;  // in the call's only line
  v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
};

Expected ExpectedOf(const Case& one) {
  const bool answered = one.moment == Moment::kLast || one.moment == Moment::kAfter;
  const Expected whole = {grpc::StatusCode::OK, "finish=\"length\"", v1::FINISH_REASON_LENGTH};
  switch (one.event) {
    case Event::kCancel: return {grpc::StatusCode::CANCELLED, "code=\"CANCELLED\""};
    case Event::kDisconnect: return {grpc::StatusCode::UNAVAILABLE, "code=\"CANCELLED\""};
    case Event::kDeadline:
      return {grpc::StatusCode::DEADLINE_EXCEEDED,
              answered ? "code=\"DEADLINE_EXCEEDED\"  error=\"deadline expired before the answer"
              : one.moment == Moment::kQueued
                  ? "code=\"DEADLINE_EXCEEDED\"  error=\"deadline expired in queue\""
                  : "code=\"DEADLINE_EXCEEDED\"  error=\"deadline expired\""};
    case Event::kAbort:
      return answered
                 ? whole
                 : Expected{grpc::StatusCode::OK, "code=\"OK\"  error=\"\"  finish=\"aborted\"",
                            v1::FINISH_REASON_ABORTED};
    case Event::kDrain:
      return answered ? whole : Expected{grpc::StatusCode::UNAVAILABLE, "code=\"UNAVAILABLE\""};
    case Event::kError:
      // One that waits and one that is done have no part in a step that fails.
      return one.moment == Moment::kQueued || one.moment == Moment::kAfter
                 ? whole
                 : Expected{grpc::StatusCode::INTERNAL, "code=\"INTERNAL\""};
  }
  return whole;
}

TEST_CASE("every ending of a call at every moment is one status and one true line", "[endings]") {
  const LogCapture log;
  for (const Shape shape : kShapes) {
    for (const Event event : kEvents) {
      for (const Moment moment : kMoments) {
        const Case one{.shape = shape, .event = event, .moment = moment};
        CAPTURE(one.id());
        const Expected expected = ExpectedOf(one);
        {
          Play play(one);
          play.Run();
          INFO(play.victim().status().error_message());
          CHECK(play.victim().status().error_code() == expected.client);
          if (play.victim().status().ok()) {
            CHECK(play.victim().finish() == expected.finish);
          }
          CHECK(play.server().BecomesQuiet());
          REQUIRE(Eventually([&] { return log.Lines(one.id()).size() == 1; }));
          if (event != Event::kDrain) {
            Victim next(shape, one.id(), play.server().NewChannel(), std::nullopt);
            next.Wait();
            CHECK(next.status().ok());
          }
        }
        // The next one's line is the second.
        const std::vector<std::string> lines = log.Lines(one.id());
        REQUIRE(lines.size() == (event == Event::kDrain ? 1 : 2));
        INFO(lines.front());
        CHECK(lines.front().find(expected.logged) != std::string::npos);
      }
    }
  }
}

// One short unary call that is perhaps cancelled.
struct ShortCall {
  grpc::ClientContext rpc;
  grpc::ByteBuffer request;
  grpc::ByteBuffer response;
  std::promise<grpc::StatusCode> done;
};

// What a client thread of the storm saw.
struct Seen {
  int ok = 0;
  int cancelled = 0;
  int other = 0;
};

Seen Storm(TestServer& server, int calls, std::uint64_t seed) {
  constexpr int kAtOnce = 16;
  grpc::GenericStub stub(server.NewChannel());
  std::uint64_t drawn = 0;
  const auto random = [&](std::uint64_t below) { return CounterBits(seed, ++drawn) % below; };
  Seen seen;
  for (int made = 0; made < calls; made += kAtOnce) {
    std::array<ShortCall, kAtOnce> batch;
    for (ShortCall& call : batch) {
      v1::CompletionRequest request = Tokens("", 1 + static_cast<int>(random(2)));
      for (std::uint64_t i = random(64); i > 0; --i) {
        request.mutable_token_ids()->add_ids(static_cast<std::int64_t>(random(50)));
      }
      const grpc::Slice slice(request.SerializeAsString());
      call.request = grpc::ByteBuffer(&slice, 1);
      stub.UnaryCall(&call.rpc, "/dsa.v1.CompletionService/Complete", grpc::StubOptions(),
                     &call.request, &call.response, [&call](const grpc::Status& status) {
                       call.done.set_value(status.error_code());
                     });
    }
    for (ShortCall& call : batch) {
      if (random(2) == 0) {
        Pause(std::chrono::microseconds(random(100)));
        call.rpc.TryCancel();
      }
    }
    for (ShortCall& call : batch) {
      const grpc::StatusCode code = call.done.get_future().get();
      seen.ok += code == grpc::StatusCode::OK ? 1 : 0;
      seen.cancelled += code == grpc::StatusCode::CANCELLED ? 1 : 0;
      seen.other += code != grpc::StatusCode::OK && code != grpc::StatusCode::CANCELLED ? 1 : 0;
    }
  }
  return seen;
}

TEST_CASE("a storm of short unary calls with cancels ends every call once", "[endings][storm]") {
#ifdef __SANITIZE_ADDRESS__
  constexpr int kCalls = 4'000;
#else
  constexpr int kCalls = 20'000;
#endif
  constexpr int kClients = 2;
  const LogCapture log;
  std::array<Seen, kClients> seen;
  {
    TestServerOptions options;
    options.listen.guard.cancels_per_s = kCalls;  // more than an honest client would
    TestServer server(options);
    std::vector<std::thread> clients;
    for (int i = 0; i < kClients; ++i) {
      clients.emplace_back([&, i] {
        seen[i] = Storm(server, kCalls / kClients, static_cast<std::uint64_t>(i) + 1);
      });
    }
    for (std::thread& client : clients) {
      client.join();
    }
    CHECK(server.BecomesQuiet());
  }
  const Seen all = {.ok = seen[0].ok + seen[1].ok,
                    .cancelled = seen[0].cancelled + seen[1].cancelled,
                    .other = seen[0].other + seen[1].other};
  CHECK(all.other == 0);
  CHECK(all.ok > kCalls / 4);
  CHECK(all.cancelled > kCalls / 100);
  // A call that was cancelled before the server heard of it has no line; an answer that crossed
  // the cancel is OK here and CANCELLED there.
  const auto lines = static_cast<int>(log.Lines("CompletionService/Complete").size());
  const auto ok = static_cast<int>(log.Lines("code=\"OK\"").size());
  CHECK(lines <= kCalls);
  CHECK(ok >= all.ok);
  for (const std::string& line : log.Lines("CompletionService/Complete")) {
    if (line.find("code=\"OK\"") == std::string::npos &&
        line.find("code=\"CANCELLED\"") == std::string::npos) {
      FAIL_CHECK(line);
      break;
    }
  }
}

}  // namespace
}  // namespace dsa::endings_test
