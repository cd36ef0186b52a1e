// Every way in which a call ends, at every moment of it.
#include "common/prng.h"
#include "proto/completion.grpc.pb.h"
#include "tests/api/relay.h"
#include "tests/api/test_server.h"
#include "tests/log_capture.h"
#include "tests/moved_clock.h"

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
using testing::MovedClock;
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

// What a deadline leaves for the calls of all moments to come there: a busy machine stands still
// for seconds.
constexpr std::chrono::seconds kDeadline{6};
// In which a server hears that its clients have left.
constexpr std::chrono::seconds kHeard{1};

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
  void OnDelta(TokenDelta&& /*delta*/) override { goes_on_.wait(false); }
  void GoOn() {
    goes_on_ = true;
    goes_on_.notify_all();
  }

 private:
  std::atomic<bool> goes_on_{false};
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

// Brings a victim to its moment, lets the event happen, and lets the server go on: the steps of one
// play are made of all before the next one, which saves waiting.
class Play final {
 public:
  explicit Play(const Case& one)
      : case_(one), server_(Options(one, clock_)), relay_(server_.port()) {
    server_.steps().Hold();
  }
  ~Play() { GoOn(); }
  Play(const Play&) = delete;
  Play& operator=(const Play&) = delete;

  void Begin() {
    if (case_.moment == Moment::kQueued) {
      front_.emplace(Shape::kStream, "front", server_.NewChannel(), std::nullopt);
      REQUIRE(server_.steps().WaitForStep(1));
    }
    victim_.emplace(case_.shape, case_.id(), Channel(),
                    case_.event == Event::kDeadline ? std::optional(kDeadline) : std::nullopt);
    BringToMoment();
  }
  // The server has heard of it when kHeard has passed.
  void Happen();
  void GoOn() {
    server_.steps().Resume();
    plug_->GoOn();
    if (victim_) {
      victim_->Wait();
    }
    if (drain_.joinable()) {
      drain_.join();
    }
    if (front_) {
      front_->Wait();
    }
  }

  const Case& of() const { return case_; }
  const Victim& victim() const { return *victim_; }
  TestServer& server() { return server_; }

 private:
  static TestServerOptions Options(const Case& one, const MovedClock& clock) {
    TestServerOptions options;
    options.clock = &clock;
    options.engine_clock = &clock;
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
  MovedClock clock_;
  TestServer server_;
  Relay relay_;
  std::shared_ptr<Plug> plug_ = std::make_shared<Plug>();
  std::thread drain_;
  std::optional<Victim> front_;
  std::optional<Victim> victim_;
};

void Play::Happen() {
  switch (case_.event) {
    case Event::kCancel:
      victim_->Cancel();
      victim_->Wait();
      return;
    case Event::kDeadline:
      // A request may have taken longer to the server than it forgives: for that the deadline
      // there, which is later than the client's, is brought forward.
      clock_.Move(kDeadline / 2);
      victim_->Wait();
      return;
    case Event::kDisconnect:
      relay_.Cut();
      victim_->Wait();
      return;
    case Event::kAbort:
      if (case_.moment == Moment::kQueued) {  // its place is taken before it can be named
        REQUIRE(Eventually([this] { return server_.engine().Abort(case_.id()); }));
      } else {
        server_.engine().Abort(case_.id());
      }
      return;
    case Event::kDrain:  // and then the rest is aborted
      server_.server().BeginDrain();
      drain_ = std::thread([this] { server_.engine().Drain(0); });
      REQUIRE(Eventually([this] { return server_.engine().Load().draining; }));
      return;
    case Event::kError: FailOneStep(); return;
  }
}

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

// What the victim heard, what the log says, and that the next call of its id is well.
void CheckPlay(Play& play, const LogCapture& log) {
  const Case& one = play.of();
  CAPTURE(one.id());
  const Expected expected = ExpectedOf(one);
  INFO(play.victim().status().error_message());
  CHECK(play.victim().status().error_code() == expected.client);
  if (play.victim().status().ok()) {
    CHECK(play.victim().finish() == expected.finish);
  }
  CHECK(play.server().BecomesQuiet());
  REQUIRE(Eventually([&] { return log.Lines(one.id()).size() == 1; }));
  INFO(log.Lines(one.id()).front());
  CHECK(log.Lines(one.id()).front().find(expected.logged) != std::string::npos);
  if (one.event != Event::kDrain) {
    Victim next(one.shape, one.id(), play.server().NewChannel(), std::nullopt);
    next.Wait();
    CHECK(next.status().ok());
    CHECK(Eventually([&] { return log.Lines(one.id()).size() == 2; }));
  }
}

TEST_CASE("every ending of a call at every moment is one status and one true line", "[endings]") {
  for (const Event event : kEvents) {
    const LogCapture log;
    std::vector<std::unique_ptr<Play>> plays;
    for (const Shape shape : kShapes) {
      for (const Moment moment : kMoments) {
        const Case one{.shape = shape, .event = event, .moment = moment};
        CAPTURE(one.id());
        plays.push_back(std::make_unique<Play>(one));
        plays.back()->Begin();
      }
    }
    for (const auto& play : plays) {
      CAPTURE(play->of().id());
      play->Happen();
    }
    if (event != Event::kAbort && event != Event::kError) {
      Pause(kHeard);
    }
    for (const auto& play : plays) {
      play->GoOn();
      CheckPlay(*play, log);
    }
    for (auto& play : plays) {
      const Case one = play->of();
      play.reset();  // and with it the server: it says no more
      CAPTURE(one.id());
      CHECK(log.Lines(one.id()).size() == (event == Event::kDrain ? 1 : 2));
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
