#include "server/engine/engine_loop.h"

#include "cache/block_pool.h"
#include "scheduler/scheduler.h"
#include "server/engine/inbox.h"
#include "tests/engine/testing.h"

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::MakeRequest;
using testing::RecordingSink;

// An engine whose steps the test makes itself.
struct Rig {
  explicit Rig(const EngineConfig& config)
      : engine(config, {.executor = executor, .clock = clock, .decoders = &decoders}) {}

  std::shared_ptr<RecordingSink> Submit(Request request) {
    auto sink = std::make_shared<RecordingSink>();
    const Status status = engine.Submit(std::move(request), sink);
    INFO((status.ok() ? "" : status.error().message));
    REQUIRE(status.ok());
    return sink;
  }
  void Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      engine.RunOnce();
      clock.now_us += 10;
    }
    engine.PumpOnce();
  }

  testing::ScriptedExecutor executor;
  testing::ManualClock clock;
  testing::LetterDecoderFactory decoders;
  EngineLoop engine;
};

TEST_CASE("A request gets its tokens, its text, one end and its usage", "[engine]") {
  Rig rig(testing::SmallEngine());
  rig.executor.on_execute = [&](const ForwardBatch&) { rig.clock.now_us += 100; };
  auto request = MakeRequest("a", 5, 3);
  const auto sink = rig.Submit(request);
  rig.clock.now_us += 7;
  rig.Run(4);
  CHECK(sink->ids() == std::vector<std::int32_t>{5, 6, 7});
  CHECK(sink->text() == "fgh");
  CHECK(sink->finish() == FinishReason::kLength);
  CHECK(sink->ends() == 1);
  const Usage usage = sink->usage();
  CHECK(usage.prompt_tokens == 5);
  CHECK(usage.completion_tokens == 3);
  CHECK(usage.queue_us == 7);
  CHECK(usage.prefill_us == 100);
  CHECK(usage.decode_us == 220);
  CHECK(rig.engine.pool().referenced_blocks() == 0);
}

TEST_CASE("When the device fails every request ends with that and nothing is said after it",
          "[engine]") {
  EngineConfig config = testing::SmallEngine();
  config.scheduler.sequences_max = 2;
  Rig rig(config);
  std::shared_ptr<RecordingSink> late;
  int steps = 0;
  rig.executor.on_execute = [&](const ForwardBatch&) {
    if (++steps == 3) {
      late = rig.Submit(MakeRequest("late", 4, 9));  // the engine has not seen it yet
      rig.engine.FailAll(ErrorCode::kUnavailable, "the device failed");
    }
  };
  const auto running = rig.Submit(MakeRequest("a", 5, 9));
  const auto other = rig.Submit(MakeRequest("b", 6, 9));
  const auto waiting = rig.Submit(MakeRequest("c", 7, 9));
  rig.Run(6);
  CHECK(running->ids().size() == 2);  // of the two steps before
  CHECK(other->ids().size() == 2);
  CHECK(waiting->ids().empty());
  CHECK(late->ids().empty());
  for (const auto& sink : {running, other, waiting, late}) {
    CHECK(sink->ends() == 1);
    CHECK(sink->finish() == FinishReason::kError);
    REQUIRE(sink->error().has_value());
    CHECK(sink->error()->code == ErrorCode::kUnavailable);
    CHECK(sink->error()->message == "the device failed");
  }
  const auto refused = std::make_shared<RecordingSink>();
  CHECK(rig.engine.Submit(MakeRequest("d", 5, 9), refused).error().code == ErrorCode::kUnavailable);
  CHECK(rig.engine.pool().referenced_blocks() == 0);
}

// What the clients of four requests heard, and how many deltas came while a step was in flight.
struct Heard {
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  std::int64_t in_flight = 0;
  std::int64_t steps = 0;
};

Heard HearFour(bool runs_ahead) {
  Rig rig(testing::SmallEngine());
  rig.executor.runs_ahead = runs_ahead;
  Heard heard;
  rig.executor.on_execute = [&](const ForwardBatch&) { ++heard.steps; };
  rig.executor.on_collect = [&] { heard.in_flight += rig.engine.PumpOnce(); };
  auto stopped = MakeRequest("stop-string", 5, 30);
  stopped.stop.stop_strings = {"kl"};  // of "fghijkl"
  auto likely = MakeRequest("length", 7, 3);
  likely.sampling.top_logprobs = 2;
  likely.stop.stop_strings = {"jz"};  // held back until the end
  heard.sinks = {rig.Submit(stopped), rig.Submit(likely), rig.Submit(MakeRequest("end", 47, 9)),
                 rig.Submit(MakeRequest("cancelled", 9, 30))};
  for (int step = 0; step < 10; ++step) {
    rig.Run(1);
    if (step == 3) {
      heard.sinks[3]->Cancel();
    }
  }
  CHECK(rig.engine.pool().referenced_blocks() == 0);
  CHECK(rig.engine.Load().requests_finished == 4);
  return heard;
}

TEST_CASE("Text that is shown while the next step runs is the same", "[engine]") {
  const Heard plain = HearFour(false);
  const Heard ahead = HearFour(true);
  CHECK(plain.in_flight == 1);  // the end of the cancelled one, before the launch
  CHECK(ahead.in_flight > 10);
  CHECK(ahead.steps == plain.steps + 1);  // a stop string is found one step late
  CHECK(plain.sinks[0]->text() == "fghij");
  CHECK(plain.sinks[3]->finish() == FinishReason::kCancelled);
  for (std::size_t i = 0; i < plain.sinks.size(); ++i) {
    CAPTURE(i);
    CHECK(ahead.sinks[i]->ids() == plain.sinks[i]->ids());
    CHECK(ahead.sinks[i]->text() == plain.sinks[i]->text());
    CHECK(ahead.sinks[i]->finish() == plain.sinks[i]->finish());
    CHECK(ahead.sinks[i]->ends() == 1);
    const Usage a = ahead.sinks[i]->usage();
    const Usage p = plain.sinks[i]->usage();
    CHECK(a.completion_tokens == p.completion_tokens);
    CHECK(a.queue_us == p.queue_us);
    CHECK(a.prefill_us == p.prefill_us);
    CHECK(a.decode_us == p.decode_us);
  }
}

TEST_CASE("The end id ends a reply, is counted, and has no text", "[engine]") {
  Rig rig(testing::SmallEngine());
  auto request = MakeRequest("a", 48, 9);
  SECTION("it stops") {
    const auto sink = rig.Submit(request);
    rig.Run(4);
    CHECK(sink->ids() == std::vector<std::int32_t>{48, 49});
    CHECK(sink->text() == "w");
    CHECK(sink->finish() == FinishReason::kStop);
    CHECK(sink->usage().completion_tokens == 2);
  }
  SECTION("unless it is ignored") {
    request.stop.ignore_end = true;
    const auto sink = rig.Submit(request);
    rig.Run(10);
    CHECK(sink->ids().size() == 9);
    CHECK(sink->text() == "wabcdefg");
    CHECK(sink->finish() == FinishReason::kLength);
  }
}

TEST_CASE("Blocks of a cancelled request are free within one step", "[engine]") {
  Rig rig(testing::SmallEngine());
  const auto sink = rig.Submit(MakeRequest("a", 20, 50));
  rig.Run(3);
  CHECK(rig.engine.pool().referenced_blocks() == 3);
  sink->Cancel();
  rig.Run(1);
  CHECK(rig.engine.pool().referenced_blocks() == 0);
  CHECK(sink->finish() == FinishReason::kCancelled);
  CHECK(sink->ids().size() == 3);
}

TEST_CASE("A deadline that passes in the queue costs no computation", "[engine]") {
  EngineConfig config = testing::SmallEngine();
  config.scheduler.sequences_max = 1;
  Rig rig(config);
  rig.Submit(MakeRequest("busy", 5, 100));
  auto request = MakeRequest("late", 5, 5);
  request.stop.deadline_us = rig.clock.now_us + 25;
  const auto sink = rig.Submit(request);
  const std::int64_t before = rig.engine.Load().tokens_computed;
  rig.Run(6);
  CHECK(sink->finish() == FinishReason::kDeadline);
  CHECK(sink->error()->code == ErrorCode::kDeadlineExceeded);
  CHECK(sink->error()->message == "deadline expired in queue");
  CHECK(sink->usage().queue_us == 30);  // it waited for three steps
  CHECK(rig.engine.Load().tokens_computed - before == 5 + 5);
}

TEST_CASE("A deadline while decoding keeps what was sent", "[engine]") {
  Rig rig(testing::SmallEngine());
  auto request = MakeRequest("late", 5, 50);
  request.stop.deadline_us = rig.clock.now_us + 35;
  const auto sink = rig.Submit(request);
  rig.Run(10);
  CHECK(sink->ids().size() == 4);
  CHECK(sink->error()->message == "deadline expired");
  CHECK(sink->usage().completion_tokens == 4);
}

TEST_CASE("Only a deadline that has passed is refused at the door, however long a step took",
          "[engine]") {
  Rig rig(testing::SmallEngine());
  rig.executor.on_execute = [&](const ForwardBatch&) { rig.clock.now_us += 9'000'000; };
  rig.Submit(MakeRequest("a", 5, 1));
  rig.Run(1);
  const auto submit = [&](const std::string& id, MonotonicUs left_us) {
    auto request = MakeRequest(id, 5, 1);
    request.stop.deadline_us = rig.clock.now_us + left_us;
    return rig.engine.Submit(request, std::make_shared<RecordingSink>());
  };
  CHECK(submit("b", -1).error().code == ErrorCode::kDeadlineExceeded);
  CHECK(submit("c", 0).error().message == "deadline has already passed");
  CHECK(submit("d", 1).ok());
  CHECK(submit("e", 8'999'999).ok());
}

TEST_CASE("A full queue refuses exactly what it cannot hold", "[engine]") {
  Rig rig(testing::SmallEngine());  // 8 can start at once and 16 wait
  int accepted = 0;
  for (int i = 0; i < 100; ++i) {
    const Status status = rig.engine.Submit(MakeRequest("r" + std::to_string(i), 5, 4),
                                            std::make_shared<RecordingSink>());
    accepted += status.ok() ? 1 : 0;
    if (!status.ok()) {
      CHECK(status.error().code == ErrorCode::kResourceExhausted);
      CHECK(status.error().message ==
            "queue full: 24 requests are waiting, limit 16 beside those that start");
    }
  }
  CHECK(accepted == 24);
  rig.Run(30);
  CHECK(rig.engine.Load().waiting == 0);
  CHECK(rig.engine.Load().requests_finished == 24);
}

TEST_CASE("With one slot and one place two requests are taken, whenever they come", "[engine]") {
  EngineConfig config = testing::SmallEngine();
  config.scheduler.sequences_max = 1;
  config.scheduler.waiting_max = 1;
  Rig rig(config);
  int made = 0;
  const auto taken = [&] {
    return rig.engine
        .Submit(MakeRequest(std::to_string(++made), 5, 2), std::make_shared<RecordingSink>())
        .ok();
  };
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    CHECK(taken());
    CHECK(taken());
    CHECK_FALSE(taken());
    rig.Run(1);  // the first one runs, the second one waits
    CHECK_FALSE(taken());
    rig.Run(1);  // the first one ends
    CHECK_FALSE(taken());
    rig.Run(1);  // the second one runs
    CHECK(taken());
    CHECK_FALSE(taken());
    rig.Run(6);
    CHECK(rig.engine.Load().waiting == 0);
  }
}

TEST_CASE("A request that is refused gives its place back", "[engine]") {
  Inbox inbox({.waiting_max = 1, .sequences_max = 1});
  CHECK(inbox.TryReserve(1));
  CHECK(inbox.TryReserve(1));
  CHECK_FALSE(inbox.TryReserve(1));
  CHECK(inbox.waiting() == 2);
  inbox.ReturnPlaces(1);
  CHECK(inbox.waiting() == 1);
  CHECK(inbox.TryReserve(1));
  inbox.Settle(-1, 0);  // one starts: as many places as before
  CHECK_FALSE(inbox.TryReserve(1));
  inbox.Settle(1, 0);  // and is preempted: beyond the bound
  inbox.Settle(-1, 0);
  CHECK_FALSE(inbox.TryReserve(1));
  inbox.Settle(-1, 0);
  CHECK(inbox.TryReserve(1));
}

// Makes decoders until there is no memory.
class MeanFactory final : public TextDecoderFactory {
 public:
  std::unique_ptr<TextDecoder> Make() const override {
    if (no_memory) {
      std::rethrow_exception(std::make_exception_ptr(std::bad_alloc()));
    }
    return letters_.Make();
  }
  std::int64_t text_bytes_max() const override { return letters_.text_bytes_max(); }
  bool no_memory = false;

 private:
  testing::LetterDecoderFactory letters_;
};

TEST_CASE("A request for which there is no memory is refused alone and leaves its place",
          "[engine]") {
  EngineConfig config = testing::SmallEngine();
  config.scheduler.waiting_max = 1;
  testing::ScriptedExecutor executor;
  const testing::ManualClock clock;
  MeanFactory decoders;
  EngineLoop engine(config, {.executor = executor, .clock = clock, .decoders = &decoders});
  const auto first = std::make_shared<RecordingSink>();
  REQUIRE(engine.Submit(MakeRequest("first", 5, 2), first).ok());
  decoders.no_memory = true;
  for (int i = 0; i < 3; ++i) {
    const Status refused =
        engine.Submit(MakeRequest("none", 5, 2), std::make_shared<RecordingSink>());
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::kResourceExhausted);
    CHECK(refused.error().message == "not enough memory for this request");
  }
  CHECK(engine.Load().waiting == 1);
  decoders.no_memory = false;
  CHECK(engine.Submit(MakeRequest("none", 5, 2), std::make_shared<RecordingSink>()).ok());
  for (int i = 0; i < 4; ++i) {
    engine.RunOnce();
  }
  engine.PumpOnce();
  CHECK(first->ends() == 1);
}

TEST_CASE("A live id is refused, and free again once its end was heard", "[engine]") {
  Rig rig(testing::SmallEngine());
  rig.Submit(MakeRequest("same", 5, 2));
  const Status status =
      rig.engine.Submit(MakeRequest("same", 5, 2), std::make_shared<RecordingSink>());
  CHECK(status.error().code == ErrorCode::kAlreadyExists);
  CHECK(status.error().message == "request_id same is live");
  rig.Run(3);
  rig.Submit(MakeRequest("same", 5, 2));
  CHECK(rig.engine.Load().waiting == 1);
}

TEST_CASE("Abort ends the request of that id alone", "[engine]") {
  Rig rig(testing::SmallEngine());
  const auto a = rig.Submit(MakeRequest("a", 5, 9));
  const auto b = rig.Submit(MakeRequest("b", 6, 9));
  CHECK_FALSE(rig.engine.Abort("c"));
  CHECK(rig.engine.Abort("a"));
  rig.Run(20);
  CHECK(a->finish() == FinishReason::kAborted);
  CHECK(b->finish() == FinishReason::kLength);
  CHECK_FALSE(rig.engine.Abort("a"));
}

TEST_CASE("A faulty row fails its request alone and leaves nothing in the cache", "[engine]") {
  Rig rig(testing::SmallEngine());
  const auto good = rig.Submit(MakeRequest("good", 17, 3));
  auto request = MakeRequest("bad", 17, 3);
  request.cache_salt = "other";
  const auto bad = rig.Submit(request);
  rig.executor.faulty_row = 33;  // the last of the second request's prompt, whose rows come last
  rig.executor.on_execute = [&](const ForwardBatch& batch) {
    rig.executor.faulty_row = batch.token_ids.size() == 34 ? 33 : -1;
  };
  rig.Run(5);
  CHECK(good->finish() == FinishReason::kLength);
  CHECK(good->ids().size() == 3);
  CHECK(bad->finish() == FinishReason::kError);
  CHECK(bad->error()->code == ErrorCode::kInternal);
  CHECK(bad->error()->message == "non-finite index scores");
  CHECK(rig.engine.pool().cached_blocks() == 2);
}

TEST_CASE("Draining refuses new requests and lets live ones end", "[engine]") {
  Rig rig(testing::SmallEngine());
  const auto sink = rig.Submit(MakeRequest("a", 5, 3));
  rig.engine.BeginDrain();
  const Status status =
      rig.engine.Submit(MakeRequest("b", 5, 3), std::make_shared<RecordingSink>());
  CHECK(status.error().code == ErrorCode::kUnavailable);
  CHECK(status.error().message == "draining");
  rig.Run(3);
  CHECK(sink->finish() == FinishReason::kLength);
  CHECK(rig.engine.Load().draining);
}

TEST_CASE("A closed inbox takes nothing, also from who looked before it closed", "[engine]") {
  Inbox inbox({.waiting_max = 2, .sequences_max = 2});
  REQUIRE_FALSE(inbox.closed());
  REQUIRE(inbox.TryReserve(1));
  auto request = std::make_unique<LiveRequest>();
  inbox.Close();
  CHECK_FALSE(inbox.TryPush({&request, 1}));
  CHECK(request != nullptr);
  CHECK(inbox.live() == 0);
}

TEST_CASE("What is live when the engine goes is told so", "[engine]") {
  std::shared_ptr<RecordingSink> running;
  std::shared_ptr<RecordingSink> queued;
  {
    Rig rig(testing::SmallEngine());
    running = rig.Submit(MakeRequest("a", 5, 30));
    rig.Run(2);
    queued = rig.Submit(MakeRequest("b", 5, 30));
  }
  CHECK(running->finish() == FinishReason::kAborted);
  CHECK(running->ids().size() == 2);
  CHECK(queued->finish() == FinishReason::kAborted);
  CHECK(running->ends() + queued->ends() == 2);
}

TEST_CASE("A pump that lags blocks the engine and loses nothing", "[engine]") {
  Rig rig(testing::SmallEngine());
  auto request = MakeRequest("a", 5, 200);
  request.stop.ignore_end = true;
  const auto sink = rig.Submit(request);
  int blocked = 0;
  while (!sink->finish().has_value()) {
    if (rig.engine.RunOnce() == EngineProgress::kBlocked) {
      ++blocked;
      rig.engine.PumpOnce();
    }
    if (rig.engine.Load().requests_finished == 1) {
      rig.engine.PumpOnce();
    }
  }
  CHECK(blocked > 0);
  CHECK(sink->ids().size() == 200);
}

TEST_CASE("Stop strings need a tokenizer", "[engine]") {
  testing::ScriptedExecutor executor;
  testing::ManualClock clock;
  EngineLoop engine(testing::SmallEngine(),
                    {.executor = executor, .clock = clock, .decoders = nullptr});
  auto request = MakeRequest("a", 5, 3);
  request.stop.stop_strings = {"x"};
  const auto sink = std::make_shared<RecordingSink>();
  CHECK(engine.Submit(request, sink).error().message ==
        "stop has strings, but this server has no tokenizer to match them with");
  request.stop.stop_strings.clear();
  REQUIRE(engine.Submit(request, sink).ok());
  for (int i = 0; i < 3; ++i) {
    engine.RunOnce();
  }
  engine.PumpOnce();
  CHECK(sink->text().empty());
  CHECK(sink->ids().size() == 3);
}

TEST_CASE("Bad requests are refused by name before they take anything", "[engine]") {
  Rig rig(testing::SmallEngine());
  const auto refuse = [&](const Request& request) {
    const Status status = rig.engine.Submit(request, std::make_shared<RecordingSink>());
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code == ErrorCode::kInvalidArgument);
    CHECK(rig.engine.Load().waiting == 0);
    return status.error().message;
  };
  auto request = MakeRequest("a", 5, 3);
  request.prompt[2] = TokenId{50};
  CHECK(refuse(request) == "prompt[2] is 50, allowed is 0 to 49");
  CHECK(refuse(MakeRequest("a", 0, 3)) == "prompt has 0 tokens, it must have at least 1");
  CHECK(refuse(MakeRequest("a", 256, 1)) == "prompt has 256 tokens, limit 255");
  request = MakeRequest("a", 5, 3);
  request.prompt_logprobs = 0;
  CHECK(refuse(request) == "prompt_logprobs: this server holds no logits of prompts");
}

TEST_CASE("An engine configuration out of range is refused by name", "[engine]") {
  EngineConfig config = testing::SmallEngine();
  CHECK(Validate(config).ok());
  config.blocks = 0;
  CHECK(Validate(config).error().message == "engine.blocks is 0, allowed is 1 to 1073741824");
  config = testing::SmallEngine();
  config.end_ids = {TokenId{50}};
  CHECK(Validate(config).error().message == "engine.end_ids is 50, allowed is 0 to 49");
  config = testing::SmallEngine();
  config.row_buckets = {1, 8};
  CHECK(Validate(config).ok());
  config.row_buckets = {1, 4, 4, 8};
  CHECK(Validate(config).error().message == "engine.row_buckets is 4, allowed is 5 to 12");
  config.row_buckets = {1, 4};
  CHECK(Validate(config).error().message == "engine.row_buckets.back is 4, allowed is 8 to 8");
}

}  // namespace
}  // namespace dsa
