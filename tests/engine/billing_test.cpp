// What requests pay for, and that it and what nobody pays for is what the engine was busy with.
#include "server/engine/billing.h"

#include "scheduler/scheduler.h"
#include "tests/engine/testing.h"

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::MakeRequest;
using testing::RecordingSink;

// An engine whose steps take what they compute, on a clock that the test turns.
struct BilledEngine {
  explicit BilledEngine(const EngineConfig& config)
      : engine(config, {.executor = executor, .clock = clock, .decoders = &decoders}) {
    executor.on_execute = [this](const ForwardBatch& batch) {
      std::int64_t duration_us = 500 + 40 * batch.shape.tokens;
      for (const std::int32_t position : batch.positions) {
        duration_us += 2 * position;
      }
      padded = padded || batch.shape.tokens > batch.tokens;
      busy_us += duration_us;
      clock.now_us += duration_us;
    };
  }

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
      engine.PumpOnce();
      clock.now_us += 30;  // between steps: nobody's
    }
  }

  testing::ScriptedExecutor executor;
  testing::ManualClock clock;
  testing::LetterDecoderFactory decoders;
  std::int64_t busy_us = 0;
  bool padded = false;
  EngineLoop engine;
};

double Billed(const RecordingSink& sink) {
  return sink.usage().cost.prefill_us + sink.usage().cost.decode_us;
}

bool Near(double a, double b) {
  return std::abs(a - b) <= 1e-6 * (std::abs(a) + std::abs(b));
}

}  // namespace

TEST_CASE("What requests pay and what nobody pays add up to the engine's busy time",
          "[engine][billing]") {
  EngineConfig config = testing::SmallEngine();
  config.blocks = 16;  // too few: some are preempted
  config.row_buckets = {1, 2, 4, 8};
  BilledEngine rig(config);
  rig.executor.runs_ahead = GENERATE(false, true);
  auto own = MakeRequest("own", 30, 5);
  own.billed = false;
  const auto own_sink = rig.Submit(own);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 6; ++i) {
    auto request = MakeRequest("request-" + std::to_string(i), 5 + 7 * i, 35);
    request.prompt.front() = TokenId{i};  // nothing is shared
    request.stop.ignore_end = true;
    if (i == 1) {
      request.stop.stop_strings = {"rst"};
    }
    sinks.push_back(rig.Submit(request));
  }
  rig.Run(12);
  sinks[3]->Cancel();
  rig.Run(300);
  double billed_us = 0;
  std::int64_t preemptions = 0;
  for (const auto& sink : sinks) {
    REQUIRE(sink->ends() == 1);
    CHECK(Billed(*sink) > 0);
    billed_us += Billed(*sink);
    preemptions += sink->usage().preemptions;
  }
  REQUIRE(own_sink->ends() == 1);
  CHECK(Billed(*own_sink) == 0);
  const BusyTime time = rig.engine.Load().busy;
  const double unbilled_us = time.recomputed_us + time.padding_us + time.own_us + time.dropped_us;
  CHECK(time.busy_us == static_cast<double>(rig.busy_us));
  CHECK(Near(time.prefill_us + time.decode_us, billed_us));
  CHECK(Near(billed_us + unbilled_us, time.busy_us));
  REQUIRE(preemptions > 0);
  CHECK(time.recomputed_us > 0);
  REQUIRE(rig.padded);
  CHECK(time.padding_us > 0);
  CHECK(time.own_us > 0);
  CHECK((time.dropped_us > 0) == rig.executor.runs_ahead);  // a stop string is found late
}

TEST_CASE("A request pays for its rows and for the keys that they see", "[engine][billing]") {
  EngineConfig config = testing::SmallEngine();
  config.scheduler.index_topk = 512;  // one path
  BilledEngine rig(config);
  // The model learns what rows cost beside a step, and keys beside rows.
  for (const int requests : {1, 6, 2, 4}) {
    for (int i = 0; i < requests; ++i) {
      rig.Submit(MakeRequest("before-" + std::to_string(i), 4 + 30 * i, 12));
    }
    rig.Run(24);
  }
  const auto small = rig.Submit(MakeRequest("small", 4, 40));
  const auto large = rig.Submit(MakeRequest("large", 200, 40));
  rig.Run(60);
  REQUIRE(small->ends() == 1);
  REQUIRE(large->ends() == 1);
  // A row takes 40 us and 2 us per key: 40 + 48 against 40 + 440, and half of the 500 for each.
  const double ratio = large->usage().cost.decode_us / small->usage().cost.decode_us;
  CHECK(ratio > 3);
  CHECK(ratio < 8);
  CHECK(large->usage().cost.prefill_us > 20 * small->usage().cost.prefill_us);
}

TEST_CASE("A prompt in the cache costs its requester little, and a preemption nothing",
          "[engine][billing]") {
  EngineConfig config = testing::SmallEngine();
  BilledEngine rig(config);
  const auto first = rig.Submit(MakeRequest("first", 160, 2));
  rig.Run(8);
  const auto second = rig.Submit(MakeRequest("second", 160, 2));
  rig.Run(8);
  REQUIRE(first->ends() + second->ends() == 2);
  CHECK(second->usage().cache_hit_tokens > 100);
  CHECK(second->usage().cost.prefill_us < 0.5 * first->usage().cost.prefill_us);
}

}  // namespace dsa
