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

  std::array<testing::ScriptedExecutor, 2> ranks;
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

}  // namespace dsa
