#include "server/engine/batch_builder.h"

#include "tests/scheduler/testing.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::SchedulerRig;

template <typename T>
std::vector<T> ToVector(std::span<const T> values) {
  return {values.begin(), values.end()};
}

BatchBuilder MakeBuilder(const SchedulerRig& rig) {
  return BatchBuilder({.step_tokens_max = rig.scheduler.config().step_tokens_max,
                       .sequences_max = rig.scheduler.config().sequences_max,
                       .slots_max = rig.scheduler.slots(),
                       .context_tokens_max = rig.scheduler.config().context_tokens_max,
                       .tokens_per_block = rig.pool.tokens_per_block(),
                       .end_ids = {TokenId{7}}});
}

TEST_CASE("A batch holds each row's token, position, slot and table", "[batch_builder]") {
  SchedulerRig rig({});
  BatchBuilder builder = MakeBuilder(rig);
  const Sequence& a = rig.Add({.prompt = 6, .max_tokens = 4, .first_token = 100});
  const Sequence& b = rig.Add({.prompt = 2, .max_tokens = 4, .first_token = 200});
  const StepPlan& plan = rig.scheduler.Plan(0);
  const ForwardBatch& batch = builder.Build(plan, rig.scheduler.sequences());
  CHECK(ToVector(batch.token_ids) ==
        std::vector<std::int32_t>{100, 101, 102, 103, 104, 105, 200, 201});
  CHECK(ToVector(batch.positions) == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 0, 1});
  CHECK(ToVector(batch.sequences) == std::vector<std::int32_t>{0, 0, 0, 0, 0, 0, 1, 1});
  CHECK(batch.block_table_stride == 2);
  CHECK(ToVector(batch.block_tables) == std::vector<std::int32_t>{a.blocks().ids()[0],
                                                                  a.blocks().ids()[1],
                                                                  b.blocks().ids()[0], -1});
  for (std::size_t row = 0; row < 8; ++row) {
    const Sequence& owner = row < 6 ? a : b;
    CHECK(batch.slots[row] == owner.blocks().Slot(batch.positions[row]));
  }
  CHECK(ToVector(batch.logit_rows) == std::vector<std::int32_t>{5, 7});
  CHECK(ToVector(batch.sample_rows) == std::vector<std::int32_t>{0, 1});
  CHECK(batch.sampling[0].position == 6);
  CHECK(batch.sampling[1].position == 2);
  CHECK_FALSE(batch.copy_logits);
}

TEST_CASE("Prompt logits are asked for at every prompt position, once", "[batch_builder]") {
  SchedulerRig rig({.step_tokens_max = 8});
  BatchBuilder builder = MakeBuilder(rig);
  rig.Add({.prompt = 11, .max_tokens = 3, .prompt_logits = PromptLogits::kAll});
  std::vector<int> seen(11, 0);
  for (int step = 0; step < 3; ++step) {
    const StepPlan& plan = rig.scheduler.Plan(0);
    const ForwardBatch& batch = builder.Build(plan, rig.scheduler.sequences());
    CHECK(batch.copy_logits);
    for (const std::int32_t row : batch.logit_rows) {
      if (batch.positions[row] < 11) {
        ++seen[batch.positions[row]];
      }
    }
    CHECK(batch.sample_rows.size() == (step == 0 ? 0U : 1U));
    if (step > 0) {
      CHECK(batch.sample_rows[0] == static_cast<std::int32_t>(batch.logit_rows.size()) - 1);
    }
    rig.scheduler.Commit(plan);
    if (step > 0) {
      rig.scheduler.Append(plan.rows[0].slot, TokenId{1});
    }
  }
  CHECK(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
}

TEST_CASE("Runs cover the rows by path, and a sequence keeps one table", "[batch_builder]") {
  SchedulerRig rig({.attention = AttentionMode::kSparse, .index_topk = 8, .masked_mha_until = 4});
  BatchBuilder builder = MakeBuilder(rig);
  rig.Add({.prompt = 12, .max_tokens = 3});
  const StepPlan& plan = rig.scheduler.Plan(0);
  const ForwardBatch& batch = builder.Build(plan, rig.scheduler.sequences());
  REQUIRE(batch.runs.size() == 3);
  CHECK(batch.runs[0].path == AttentionPath::kDense);
  CHECK(batch.runs[1].path == AttentionPath::kMaskedAll);
  CHECK(batch.runs[2].path == AttentionPath::kSparse);
  CHECK(ToVector(batch.positions) ==
        std::vector<std::int32_t>{4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11});
  CHECK(batch.block_tables.size() == 3);
}

TEST_CASE("End and stop ids are suppressed before min_tokens only", "[batch_builder]") {
  SchedulerRig rig({});
  BatchBuilder builder = MakeBuilder(rig);
  Request request;
  request.prompt = {TokenId{1}};
  request.stop.max_tokens = 5;
  request.stop.min_tokens = 2;
  request.stop.stop_ids = {TokenId{9}};
  SECTION("both") {}
  SECTION("stop ids only, where the end is ignored") {
    request.stop.ignore_end = true;
  }
  const bool ignore_end = request.stop.ignore_end;
  const auto slot = rig.scheduler.Add(std::make_unique<Sequence>(std::move(request), rig.hasher));
  for (int step = 0; step < 4; ++step) {
    const StepPlan& plan = rig.scheduler.Plan(0);
    const ForwardBatch& batch = builder.Build(plan, rig.scheduler.sequences());
    const std::vector<std::int32_t> suppressed =
        ignore_end ? std::vector<std::int32_t>{9} : std::vector<std::int32_t>{7, 9};
    std::vector<std::int32_t> ids;
    for (const LogitAdjustment& adjustment : batch.adjustments) {
      CHECK(adjustment.add == -std::numeric_limits<float>::infinity());
      CHECK(adjustment.repetition == 1.0F);
      ids.push_back(adjustment.id);
    }
    CHECK(ids == (step < 2 ? suppressed : std::vector<std::int32_t>{}));
    CHECK(batch.sampling[0].adjustments_first == 0);
    CHECK(batch.sampling[0].adjustments_count == static_cast<int>(ids.size()));
    rig.scheduler.Commit(plan);
    rig.scheduler.Append(slot, TokenId{1});
  }
}

}  // namespace
}  // namespace dsa
