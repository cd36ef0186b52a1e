// A call between an engine and a protocol, without any protocol.
#include "server/api/generation_call.h"

#include "tests/api/fake_engine.h"
#include "tests/engine/stepped_engine.h"

#include <atomic>

#include <catch2/catch.hpp>

namespace dsa::generation_call_test {
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
                               .prompt_logprobs = "",
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
    return Start(ask, header, Delivery::kStream, writer);
  }
  std::shared_ptr<GenerationCall> Start(const Ask& ask, const std::string& header,
                                        Delivery delivery, ReplyWriter& to) {
    return GenerationCall::Start(
        context,
        {.method = "Test/Call",
         .fields = &kNames,
         .request_id_header = header,
         .deadline_us = deadline_us},
        10,
        [ask, delivery](Ask& target) {
          target = ask;
          target.delivery = delivery;
          return Status();
        },
        to);
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
  ask.prompts = {IdPrompt{1, 2}};
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
  testing::Pause(kLooks);
  CHECK(world.writer.signs_of_life == 1);  // it was one, although nothing was written
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
  ask.prompts = {IdPrompt{1, 100}};
  CHECK(message(ask) == "the_ids[1]: 100 is not in [0, 100)");
  ask.prompts = {IdPrompt{}};
  CHECK(message(ask) == "the_prompt: empty: at least one token");
  ask.prompts = {IdPrompt{1}, IdPrompt{}};
  CHECK(message(ask) == "the_prompt[1]: empty: at least one token");
  ask.prompts = {IdPrompt{1}, IdPrompt{1, 100}};
  CHECK(message(ask) == "the_prompt[1][1]: 100 is not in [0, 100)");
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

// A token with so many candidates.
TokenDelta WithCandidates(std::size_t count) {
  TokenDelta delta = Delta("x", {1});
  delta.tokens[0].top_logprobs.resize(count);
  return delta;
}

TEST_CASE("a whole reply has as many log-probabilities as its memory was planned for",
          "[api][call]") {
  World world;
  world.context.slow_client.logprobs_max = 9;
  Ask ask = Ids();
  ask.logprobs = true;
  ask.top_logprobs = 2;
  const auto [delivery, tokens, fits] = GENERATE(table<Delivery, int, bool>(
      {{Delivery::kWhole, 3, true}, {Delivery::kWhole, 4, false}, {Delivery::kStream, 5, true}}));
  CAPTURE(tokens, fits);
  const auto call = world.Start(ask, "", delivery, world.writer);
  const auto submitted = world.engine.Wait(0);
  REQUIRE(submitted);
  for (int i = 0; i < tokens; ++i) {
    submitted->sink->OnDelta(WithCandidates(2));
  }
  CHECK(submitted->sink->cancelled() != fits);
  if (!fits) {
    CHECK(world.context.held_bytes == 0);  // at once
  }
  submitted->sink->OnDelta(LastDelta(fits ? FinishReason::kLength : FinishReason::kCancelled));
  if (delivery == Delivery::kStream) {
    call->OnWriteDone(true);
  }
  CHECK(world.writer.status.ok() == fits);
  if (!fits) {
    CHECK(world.writer.parts.empty());
    CHECK(world.writer.status.error().code == ErrorCode::kResourceExhausted);
    CHECK(world.writer.status.error().message.starts_with("more than 9 log-probabilities"));
  }
  call->OnDone();
  CHECK(world.context.held_bytes == 0);
}

TEST_CASE("several answers to one prompt are one whole reply, and end as one where it is too large",
          "[api][call]") {
  World world;
  world.context.slow_client.logprobs_max = 9;
  Ask ask = Ids();
  ask.n = 3;
  ask.logprobs = true;
  ask.top_logprobs = 2;
  const auto call = world.Start(ask, "", Delivery::kWhole, world.writer);
  std::vector<testing::Submitted> answers;
  for (std::size_t i = 0; i < 3; ++i) {
    answers.push_back(world.engine.Wait(i).value());
  }
  answers[1].sink->OnDelta(WithCandidates(2));
  answers[1].sink->OnDelta(LastDelta(FinishReason::kStop));
  answers[0].sink->OnDelta(WithCandidates(2));
  answers[2].sink->OnDelta(WithCandidates(2));
  CHECK_FALSE(answers[0].sink->cancelled());
  answers[0].sink->OnDelta(WithCandidates(2));
  CHECK(answers[0].sink->cancelled());
  CHECK(answers[2].sink->cancelled());
  CHECK(world.context.held_bytes == 0);  // at once
  answers[0].sink->OnDelta(LastDelta(FinishReason::kCancelled));
  CHECK(world.writer.finishes == 0);
  answers[2].sink->OnDelta(LastDelta(FinishReason::kCancelled));
  CHECK(world.writer.finishes == 1);
  CHECK(world.writer.parts.empty());
  CHECK(world.writer.status.error().code == ErrorCode::kResourceExhausted);
  call->OnDone();
  CHECK(world.context.held_bytes == 0);
}

TEST_CASE("replies that are not sent yet have a limit of memory together", "[api][call]") {
  World world;
  world.context.slow_client.held_bytes_max = 100'000;
  RecordingWriter first_writer;
  const auto first = world.Start(Ids(), "", Delivery::kWhole, first_writer);
  const auto held = world.engine.Wait(0);
  REQUIRE(held);
  held->sink->OnDelta(Delta(std::string(90'000, 'a'), {1}));
  CHECK_FALSE(held->sink->cancelled());

  // A small one has room whatever others hold, and its own is given back.
  const auto small = world.Start(Ids(), "", Delivery::kWhole, world.writer);
  const auto briefly = world.engine.Wait(1);
  REQUIRE(briefly);
  briefly->sink->OnDelta(Delta(std::string(10'500, 'b'), {1}));
  CHECK_FALSE(briefly->sink->cancelled());
  briefly->sink->OnDelta(LastDelta(FinishReason::kStop));
  CHECK(world.writer.status.ok());
  small->OnDone();

  const auto delivery = GENERATE(Delivery::kWhole, Delivery::kStream);
  RecordingWriter last_writer;
  const auto last = world.Start(Ids(), "", delivery, last_writer);
  const auto large = world.engine.Wait(2);
  REQUIRE(large);
  if (delivery == Delivery::kStream) {
    large->sink->OnDelta(Delta("c", {1}));  // a write that does not end
  }
  large->sink->OnDelta(Delta(std::string(20'000, 'c'), {1}));
  CHECK(large->sink->cancelled());
  CHECK_FALSE(held->sink->cancelled());
  large->sink->OnDelta(LastDelta(FinishReason::kCancelled));
  if (delivery == Delivery::kStream) {
    CHECK(last_writer.drops == 1);
    last->OnWriteDone(false);
  }
  CHECK(last_writer.status.error().code == ErrorCode::kResourceExhausted);
  last->OnDone();

  held->sink->OnDelta(LastDelta(FinishReason::kStop));
  CHECK(first_writer.status.ok());
  CHECK(first_writer.parts[0].content.size() == 90'000);
  first->OnDone();
  CHECK(world.context.held_bytes == 0);
}

}  // namespace
}  // namespace dsa::generation_call_test
