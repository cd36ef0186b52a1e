// An engine of two data ranks: who goes where, what waits, what others see of it.
#include "tests/engine/testing.h"

#include <array>
#include <memory>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::MakeRequest;
using testing::RecordingSink;

class TwoExecutors final : public StepExecutor {
 public:
  void Launch(const ForwardBatch& batch) override { ranks[0].Launch(batch); }
  const StepResult& Collect() override { return ranks[0].Collect(); }
  StepExecutor& OfDataRank(std::int64_t rank) override {
    return ranks.at(static_cast<std::size_t>(rank));
  }

  bool RunsAhead() const override { return runs_ahead; }

  std::array<testing::ScriptedExecutor, 2> ranks;
  bool runs_ahead = false;
};

EngineConfig TwoRanks() {
  EngineConfig config = testing::SmallEngine();
  config.data_ranks = 2;
  config.scheduler.sequences_max = 2;
  config.row_buckets = {1, 2};
  return config;
}

struct TwoRankEngine {
  TwoRankEngine()
      : engine(TwoRanks(), {.executor = executors, .clock = clock, .decoders = &decoders}) {
    for (std::size_t rank = 0; rank < executors.ranks.size(); ++rank) {
      executors.ranks[rank].on_execute = [this, rank](const ForwardBatch& batch) {
        rows[rank].push_back(batch.tokens);
        shapes[rank] = batch.shape;
      };
    }
  }

  std::shared_ptr<RecordingSink> Submit(Request request) {
    auto sink = std::make_shared<RecordingSink>();
    REQUIRE(engine.Submit(std::move(request), sink).ok());
    return sink;
  }
  void Step() {
    clock.now_us += 100;
    engine.RunOnce();
    engine.PumpOnce();
  }

  TwoExecutors executors;
  testing::ManualClock clock;
  testing::LetterDecoderFactory decoders;
  std::array<std::vector<std::int64_t>, 2> rows;  // of each step
  std::array<StepShape, 2> shapes{};              // of the last one
  EngineLoop engine;
};

}  // namespace

TEST_CASE("Requests go where their first token comes first, and others wait for any rank",
          "[engine][data ranks]") {
  TwoRankEngine rig;
  const auto longer = rig.Submit(MakeRequest("long", 30, 20));
  const auto shorter = rig.Submit(MakeRequest("short", 3, 2));
  const auto third = rig.Submit(MakeRequest("third", 20, 20));
  const auto fourth = rig.Submit(MakeRequest("fourth", 4, 20));
  const auto fifth = rig.Submit(MakeRequest("fifth", 2, 20));
  rig.Step();
  // 30 tokens on the first rank, 3 and 20 on the second, so 4 more come sooner on the second, which
  // has no third place.
  CHECK(rig.rows[0] == std::vector<std::int64_t>{34});
  CHECK(rig.rows[1] == std::vector<std::int64_t>{23});
  EngineLoad load = rig.engine.Load();
  CHECK(load.waiting == 1);
  CHECK(load.running == 4);
  CHECK(load.blocks_total == 128);
  REQUIRE(load.ranks.size() == 2);
  CHECK(load.ranks[0].running == 2);
  CHECK(load.ranks[1].running == 2);
  CHECK(load.ranks[0].waiting + load.ranks[1].waiting == 0);
  CHECK(load.ranks[0].rows == 34);
  CHECK(load.ranks[1].padding_rows == 0);
  CHECK(rig.shapes[0].exchange_rows == 34);
  CHECK(rig.shapes[1].exchange_rows == 34);
  CHECK(rig.shapes[1].tokens == 23);
  rig.Step();  // the short one ends
  CHECK(shorter->ends() == 1);
  rig.Step();  // the fifth starts where it was
  load = rig.engine.Load();
  CHECK(load.waiting == 0);
  CHECK(load.ranks[1].running == 2);
  CHECK(rig.rows[1].back() == 3);
}

TEST_CASE("A data rank without work runs every step, padded as the other", "[engine][data ranks]") {
  TwoRankEngine rig;
  const auto only = rig.Submit(MakeRequest("only", 9, 3));
  rig.Step();
  CHECK(rig.rows[1] == std::vector<std::int64_t>{0});
  CHECK(rig.shapes[1].tokens == 0);
  CHECK(rig.shapes[1].exchange_rows == 9);
  rig.Step();
  CHECK(rig.shapes[1] == rig.shapes[0]);
  CHECK(rig.shapes[1].tokens == 1);
  CHECK(rig.engine.Load().ranks[1].padding_rows == 1);
  rig.Step();
  CHECK(only->ends() == 1);
  rig.Step();
  CHECK(rig.rows[0].size() == 3);
  CHECK(rig.rows[1].size() == 3);
  CHECK(rig.engine.Load().steps == 3);
}

TEST_CASE("A cached prefix is worth its tokens and no more", "[engine][data ranks]") {
  TwoRankEngine rig;
  rig.Submit(MakeRequest("first", 40, 1));
  rig.Step();  // its five blocks stay with the first rank
  const auto again = rig.Submit(MakeRequest("again", 44, 20));
  rig.Step();
  CHECK(rig.rows[0].back() == 4);
  CHECK(rig.rows[1].back() == 0);
  // Beside it nothing is owed, so the prefix draws the next one there, too; a stranger goes to the
  // rank with nobody.
  Request other = MakeRequest("other", 4, 20);
  other.prompt[0] = TokenId{7};
  rig.Submit(other);
  rig.Step();
  CHECK(rig.engine.Load().ranks[1].running == 1);
}

TEST_CASE("Who waits for a rank can be cancelled and aborted", "[engine][data ranks]") {
  TwoRankEngine rig;
  for (int i = 0; i < 4; ++i) {
    rig.Submit(MakeRequest("r" + std::to_string(i), 4, 40));
  }
  const auto cancelled = rig.Submit(MakeRequest("cancelled", 4, 40));
  const auto aborted = rig.Submit(MakeRequest("aborted", 4, 40));
  const auto failed = rig.Submit(MakeRequest("failed", 4, 40));
  rig.Step();
  cancelled->Cancel();
  CHECK(rig.engine.Abort("aborted"));
  rig.Step();
  CHECK(cancelled->finish() == FinishReason::kCancelled);
  CHECK(aborted->finish() == FinishReason::kAborted);
  CHECK(aborted->ends() == 1);
  CHECK(rig.engine.Load().waiting == 1);
  rig.engine.FailAll(ErrorCode::kUnavailable, "the device failed");
  CHECK(failed->finish() == FinishReason::kError);
  CHECK(failed->ends() == 1);
}

TEST_CASE("Load says how evenly the experts of a data rank are hit, by rows of all",
          "[engine][data ranks]") {
  TwoExecutors executors;
  const bool runs_ahead = GENERATE(false, true);
  EngineConfig config = TwoRanks();
  config.experts = {.layers = 2, .experts = 4};
  config.expert_shares = {{.first = 0, .count = 1}, {.first = 1, .count = 3}};
  for (testing::ScriptedExecutor& executor : executors.ranks) {
    executor.experts = config.experts;
  }
  executors.runs_ahead = runs_ahead;
  executors.ranks[0].expert_pairs = {3, 1, 0, 2, 0, 0, 5, 1};
  executors.ranks[1].expert_pairs = {1, 0, 0, 3, 2, 1, 0, 1};
  testing::ManualClock clock;
  testing::LetterDecoderFactory decoders;
  EngineLoop engine(config, {.executor = executors, .clock = clock, .decoders = &decoders});
  CHECK(engine.Load().ranks[0].expert_pairs_max_over_mean == 0.0);
  const auto sink = std::make_shared<RecordingSink>();
  REQUIRE(engine.Submit(MakeRequest("only", 9, 3), sink).ok());
  for (int step = 0; step < 4; ++step) {  // the last one finds nothing to do
    engine.RunOnce();
    engine.PumpOnce();
  }
  const EngineLoad load = engine.Load();
  REQUIRE(load.steps == 3);
  CHECK(load.ranks[0].expert_pairs == 3 * 6);
  CHECK(load.ranks[0].expert_pairs_max_over_mean == 1.0);  // an expert is as even as can be
  // 1, 0, 5 in the first layer and 1, 5, 2 in the second: 10 over means of 2 and 8 / 3.
  CHECK(load.ranks[1].expert_pairs == 3 * 14);
  CHECK(load.ranks[1].expert_pairs_max_over_mean == 10.0 * 3.0 / 14.0);
}

TEST_CASE("Shares of experts that are not one for each data rank are refused",
          "[engine][data ranks]") {
  EngineConfig config = TwoRanks();
  config.experts = {.layers = 2, .experts = 4};
  CHECK(Validate(config).error().message == "engine.expert_shares.size is 0, allowed is 2 to 2");
  config.expert_shares = {{.first = 0, .count = 2}, {.first = 2, .count = 3}};
  CHECK(Validate(config).error().message == "engine.expert_shares.count is 3, allowed is 0 to 2");
}

}  // namespace dsa
