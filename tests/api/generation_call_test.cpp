// A call between an engine and a protocol, without any protocol.
#include "server/api/generation_call.h"

#include "tests/api/fake_engine.h"
#include "tests/engine/stepped_engine.h"

#include <atomic>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::Delta;
using testing::LastDelta;

constexpr FieldNames kNames = {.request_id = "the_id",
                               .model = "the_model",
                               .prompt = "the_prompt",
                               .token_ids = "the_ids",
                               .add_bos = "",
                               .chat = {},
                               .temperature = "how_hot",
                               .top_p = "",
                               .min_p = "",
                               .top_k = "",
                               .frequency_penalty = "",
                               .presence_penalty = "",
                               .repetition_penalty = "",
                               .logit_bias = "",
                               .n = "how_many",
                               .max_tokens = "how_long",
                               .min_tokens = "",
                               .stop = "",
                               .stop_token_ids = "",
                               .logprobs = "",
                               .top_logprobs = "",
                               .cache_salt = "",
                               .priority = ""};

class RecordingWriter final : public ReplyWriter {
 public:
  void Write(const ReplyPart& part, const ReplyHead& head) override {
    parts.push_back(part);
    request_id = head.request_id;
  }
  void Finish(const ReplyPart* last, const ReplyHead& head, const Status& end) override {
    if (last != nullptr) {
      parts.push_back(*last);
    }
    request_id = head.request_id;
    status = end;
    ++finishes;
  }
  bool StayAlive(const ReplyHead& /*head*/) override {
    ++signs_of_life;
    return false;
  }
  void Drop() override { ++drops; }

  std::vector<ReplyPart> parts;
  std::string request_id;
  Status status;
  int finishes = 0;
  int drops = 0;
  std::atomic<int> signs_of_life{0};
};

class HandSetClock final : public Clock {
 public:
  MonotonicUs NowUs() const override { return now_us; }
  std::atomic<MonotonicUs> now_us{1000};  // looked at by the thread of the open calls, too
};

struct World {
  World() {
    context.model.id = "m";
    context.model.context_length = 16;
    context.model.vocabulary = 100;
    context.model.max_tokens_default = 8;
  }

  std::shared_ptr<GenerationCall> Start(const Ask& ask, const std::string& header = "") {
    return GenerationCall::Start(
        context,
        {.method = "Test/Call",
         .fields = &kNames,
         .request_id_header = header,
         .deadline_us = deadline_us},
        10,
        [ask](Ask& target) {
          target = ask;
          target.delivery = Delivery::kStream;
          return Status();
        },
        writer);
  }

  testing::FakeEngine engine;
  HandSetClock clock;
  std::optional<MonotonicUs> deadline_us;
  ServiceContext context{.engine = engine,
                         .clock = clock,
                         .tokenizer = nullptr,
                         .model = {},
                         .server = {},
                         .slow_client = {},
                         .draining = false,
                         .request_ids = {},
                         .open_calls = {},
                         .workers = {}};
  RecordingWriter writer;
};

Ask Ids() {
  Ask ask;
  ask.prompt = IdPrompt{1, 2};
  return ask;
}

TEST_CASE("a call has one write in flight and one end", "[api][call]") {
  World world;
  const auto call = world.Start(Ids());
  const auto submitted = world.engine.Wait(0);
  REQUIRE(submitted);
  submitted->sink->OnDelta(Delta("a", {1}));
  submitted->sink->OnDelta(Delta("b", {2}));
  submitted->sink->OnDelta(Delta("c", {3}));
  REQUIRE(world.writer.parts.size() == 1);
  call->OnWriteDone(true);
  REQUIRE(world.writer.parts.size() == 2);
  CHECK(world.writer.parts[1].content == "bc");
  submitted->sink->OnDelta(LastDelta(FinishReason::kStop));
  CHECK(world.writer.finishes == 0);  // the write is still in flight
  call->OnWriteDone(true);
  CHECK(world.writer.finishes == 1);
  CHECK(world.writer.status.ok());
  CHECK(IsRequestId(world.writer.request_id));
  CHECK(world.writer.request_id == submitted->request.external_id);
  call->OnDone();
}

TEST_CASE("a stream that has nothing to say for 10 s gives a sign of life", "[api][call]") {
  constexpr MonotonicUs kSilence = 10'000'000;
  constexpr std::chrono::milliseconds kLooks{350};  // at least three
  World world;
  const auto call = world.Start(Ids());
  const auto submitted = world.engine.Wait(0);
  REQUIRE(submitted);
  const auto signs = [&](int count) {
    return testing::Eventually([&] { return world.writer.signs_of_life == count; });
  };
  testing::Pause(kLooks);
  CHECK(world.writer.signs_of_life == 0);
  world.clock.now_us += kSilence;
  CHECK(signs(1));
  submitted->sink->OnDelta(Delta("a", {1}));
  world.clock.now_us += 2 * kSilence;  // while a write is in flight
  testing::Pause(kLooks);
  CHECK(world.writer.signs_of_life == 1);
  call->OnWriteDone(true);
  testing::Pause(kLooks);
  CHECK(world.writer.signs_of_life == 1);
  world.clock.now_us += kSilence;
  CHECK(signs(2));
  submitted->sink->OnDelta(LastDelta(FinishReason::kStop));
  world.clock.now_us += kSilence;  // the end is on its way
  testing::Pause(kLooks);
  CHECK(world.writer.signs_of_life == 2);
  call->OnDone();
}

TEST_CASE("several answers are one call with one end", "[api][call]") {
  World world;
  Ask ask = Ids();
  ask.n = 3;
  ask.seed = 70;
  const auto call = world.Start(ask);
  std::vector<testing::Submitted> submitted;
  for (std::size_t i = 0; i < 3; ++i) {
    submitted.push_back(world.engine.Wait(i).value());
    CHECK(submitted[i].request.sampling.seed == 70 + i);
    CHECK(submitted[i].request.external_id == submitted[0].request.external_id);
  }
  submitted[1].sink->OnDelta(Delta("a", {1}));  // is written
  submitted[0].sink->OnDelta(Delta("x", {1}));
  submitted[1].sink->OnDelta(LastDelta(FinishReason::kStop));
  submitted[0].sink->OnDelta(Delta("y", {1}));
  submitted[2].sink->OnDelta(Delta("m", {1}));
  REQUIRE(world.writer.parts.size() == 1);
  for (int i = 0; i < 3; ++i) {
    call->OnWriteDone(true);  // each in its turn
  }
  REQUIRE(world.writer.parts.size() == 4);
  CHECK(world.writer.parts[0].index == 1);
  CHECK(world.writer.parts[1].index == 2);
  CHECK(world.writer.parts[2].index == 0);
  CHECK(world.writer.parts[2].content == "xy");
  CHECK(world.writer.parts[3].index == 1);
  CHECK(world.writer.parts[3].finish == ReplyFinish::kStop);
  call->OnWriteDone(true);
  submitted[2].sink->OnDelta(LastDelta(FinishReason::kLength));
  call->OnWriteDone(true);
  CHECK(world.writer.finishes == 0);
  submitted[0].sink->OnDelta(LastDelta(FinishReason::kStop));
  CHECK(world.writer.finishes == 1);
  CHECK(world.writer.status.ok());
  CHECK(world.writer.parts.back().index == 0);
  CHECK(world.writer.parts.back().usage.prompt_tokens == 3);      // of the first alone
  CHECK(world.writer.parts.back().usage.completion_tokens == 6);  // of all
  CHECK(world.writer.parts.back().usage.cache_hit_tokens == 1);
  call->OnDone();
}

TEST_CASE("an answer that fails leaves the others alone, and the call failed", "[api][call]") {
  World world;
  Ask ask = Ids();
  ask.n = 2;
  const auto call = world.Start(ask);
  const auto first = world.engine.Wait(0);
  const auto second = world.engine.Wait(1);
  TokenDelta failed = LastDelta(FinishReason::kError);
  failed.error = Error{ErrorCode::kInternal, "non-finite logits"};
  first->sink->OnDelta(std::move(failed));
  call->OnWriteDone(true);
  CHECK(world.writer.finishes == 0);
  CHECK_FALSE(second->sink->cancelled());
  second->sink->OnDelta(Delta("b", {1}));
  call->OnWriteDone(true);
  second->sink->OnDelta(LastDelta(FinishReason::kStop));
  CHECK(world.writer.finishes == 1);
  CHECK(world.writer.status.error().message == "non-finite logits");
  call->OnDone();
}

TEST_CASE("a client that leaves cancels all its answers", "[api][call]") {
  World world;
  Ask ask = Ids();
  ask.n = 2;
  const auto call = world.Start(ask);
  const auto first = world.engine.Wait(0);
  const auto second = world.engine.Wait(1);
  call->OnCancel();
  CHECK(first->sink->cancelled());
  CHECK(second->sink->cancelled());
  first->sink->OnDelta(LastDelta(FinishReason::kCancelled));
  CHECK(world.writer.finishes == 0);
  second->sink->OnDelta(LastDelta(FinishReason::kCancelled));
  CHECK(world.writer.finishes == 1);
  CHECK(world.writer.status.error().code == ErrorCode::kCancelled);
  call->OnDone();
}

TEST_CASE("an id in the message binds, one in the header is taken where it is free",
          "[api][call]") {
  World world;
  world.engine.live = {"taken"};
  Ask ask = Ids();
  ask.request_id = "taken";
  world.Start(ask)->OnDone();
  CHECK(world.writer.finishes == 1);
  CHECK(world.writer.status.error().code == ErrorCode::kAlreadyExists);
  CHECK(world.writer.status.error().message == "the_id: \"taken\" names a request that is live");
  ask.request_id = "no id";
  world.Start(ask)->OnDone();
  CHECK(world.writer.status.error().message.rfind("the_id: \"no id\" has characters", 0) == 0);
  CHECK(world.engine.submitted() == 0);

  const auto id_for_header = [&](const std::string& header) {
    world.Start(Ids(), header)->OnDone();
    return world.engine.Wait(world.engine.submitted() - 1)->request.external_id;
  };
  CHECK(id_for_header("free") == "free");
  const std::string other = id_for_header("taken");
  CHECK(IsRequestId(other));
  CHECK(other != "taken");
  CHECK(IsRequestId(id_for_header("no id")));
  ask.request_id = "mine";
  world.Start(ask, "free")->OnDone();
  CHECK(world.engine.Wait(3)->request.external_id == "mine");
}

TEST_CASE("errors name fields as the protocol does", "[api][call]") {
  World world;
  const auto message = [&](const Ask& ask) {
    world.Start(ask)->OnDone();
    return world.writer.status.ok() ? "" : world.writer.status.error().message;
  };
  Ask ask = Ids();
  ask.temperature = 3.0F;
  CHECK(message(ask) == "how_hot: 3 is not in [0, 2]");
  ask = Ids();
  ask.n = 17;
  CHECK(message(ask) == "how_many: 17 is not in [1, 16]");
  ask = Ids();
  ask.max_tokens = 15;
  CHECK(message(ask).rfind("how_long: 15 is not in [1, 14]", 0) == 0);
  ask = Ids();
  ask.model = "x";
  CHECK(message(ask).rfind("the_model: \"x\" is not served", 0) == 0);
  ask.model = "";
  ask.prompt = IdPrompt{1, 100};
  CHECK(message(ask) == "the_ids[1]: 100 is not in [0, 100)");
  ask.prompt = IdPrompt{};
  CHECK(message(ask) == "the_prompt: empty: at least one token");
}

TEST_CASE("a client that has left gets nothing more", "[api][call]") {
  World world;
  const auto call = world.Start(Ids());
  const auto submitted = world.engine.Wait(0);
  REQUIRE(submitted);
  submitted->sink->OnDelta(Delta("a", {1}));
  call->OnWriteDone(false);
  CHECK(submitted->sink->cancelled());
  submitted->sink->OnDelta(Delta("b", {2}));
  submitted->sink->OnDelta(LastDelta(FinishReason::kCancelled));
  CHECK(world.writer.parts.size() == 1);
  CHECK(world.writer.finishes == 1);
  CHECK(world.writer.status.error().code == ErrorCode::kCancelled);
  call->OnDone();
}

// Its timer runs out before ours does; a request that is cancelled is given up at once, one whose
// deadline has passed ends by the engine's own clock.
TEST_CASE("a client that leaves shortly before its deadline left because of it", "[api][call]") {
  const auto is_cancelled = [](MonotonicUs timeout_us, MonotonicUs leaves_us) {
    World world;
    const MonotonicUs start_us = world.clock.now_us;
    world.deadline_us = start_us + timeout_us;
    const auto call = world.Start(Ids());
    world.clock.now_us = start_us + leaves_us;
    call->OnCancel();
    const auto submitted = world.engine.Wait(0);
    const bool cancelled = submitted->sink->cancelled();
    submitted->sink->OnDelta(LastDelta(FinishReason::kCancelled));
    CHECK(world.writer.status.error().code ==
          (cancelled ? ErrorCode::kCancelled : ErrorCode::kDeadlineExceeded));
    call->OnDone();
    return cancelled;
  };
  CHECK(is_cancelled(1'000'000, 0));
  CHECK(is_cancelled(1'000'000, 964'999));
  CHECK_FALSE(is_cancelled(1'000'000, 965'000));
  CHECK_FALSE(is_cancelled(1'000'000, 1'000'001));
  CHECK(is_cancelled(100'000, 88'999));
  CHECK_FALSE(is_cancelled(100'000, 89'000));
  CHECK_FALSE(is_cancelled(10'000'000, 9'875'000));
}

}  // namespace
}  // namespace dsa
