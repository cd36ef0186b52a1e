#include "server/engine/batch_builder.h"

#include "tests/scheduler/testing.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::SchedulerRig;

template <typename T>
std::vector<T> ToVector(std::span<const T> values) {
  return {values.begin(), values.end()};
}

constexpr std::int64_t kRowAdjustments = 40;

BatchBuilder MakeBuilder(const SchedulerRig& rig, std::vector<std::int64_t> row_buckets = {}) {
  return BatchBuilder({.step_tokens_max = rig.scheduler.config().step_tokens_max,
                       .sequences_max = rig.scheduler.config().sequences_max,
                       .slots_max = rig.scheduler.slots(),
                       .context_tokens_max = rig.scheduler.config().context_tokens_max,
                       .tokens_per_block = rig.pool.tokens_per_block(),
                       .end_ids = {TokenId{7}},
                       .given_rows_max = 16,
                       .row_adjustments = kRowAdjustments,
                       .row_buckets = std::move(row_buckets),
                       .padding_block = rig.pool.blocks()});
}

// What an executor does with adjustments.
class KeptAdjustments final {
 public:
  // Applies a batch's updates; what its sampling entry then refers to.
  std::vector<LogitAdjustment> Of(const ForwardBatch& batch, std::size_t entry) {
    for (const TableUpdate& update : batch.adjustment_updates) {
      std::copy_n(
          batch.words.begin() + update.source, update.count,
          words_.begin() + update.row * kRowAdjustments * kWordsPerAdjustment + update.first);
      sent += update.count / kWordsPerAdjustment;
    }
    std::vector<LogitAdjustment> adjustments(batch.sampling[entry].adjustments_count);
    if (!adjustments.empty()) {
      std::memcpy(adjustments.data(),
                  words_.data() + batch.sampling[entry].adjustments_first * kWordsPerAdjustment,
                  adjustments.size() * sizeof(LogitAdjustment));
    }
    return adjustments;
  }
  std::int64_t sent = 0;  // entries

 private:
  std::vector<std::int32_t> words_ =
      std::vector<std::int32_t>(9 * kRowAdjustments * kWordsPerAdjustment);  // 8 of sequences
};

// A change of a block table, with its blocks.
struct Change {
  std::int32_t row;
  std::int32_t first;
  std::vector<std::int32_t> blocks;
  friend bool operator==(const Change&, const Change&) = default;
};

Change BlocksOf(const ForwardBatch& batch, std::size_t index) {
  const TableUpdate& update = batch.table_updates[index];
  return {update.row, update.first, ToVector(batch.words.subspan(update.source, update.count))};
}

TEST_CASE("A batch holds each row's token, position, slot and table", "[batch_builder]") {
  SchedulerRig rig({});
  BatchBuilder builder = MakeBuilder(rig);
  const Sequence& a = rig.Add({.prompt = 6, .max_tokens = 4, .first_token = 100});
  const Sequence& b = rig.Add({.prompt = 2, .max_tokens = 4, .first_token = 200});
  const StepPlan& plan = rig.scheduler.Plan(0, {});
  const ForwardBatch& batch = builder.Build(plan, rig.scheduler.sequences());
  CHECK(ToVector(batch.token_ids) ==
        std::vector<std::int32_t>{100, 101, 102, 103, 104, 105, 200, 201});
  CHECK(ToVector(batch.positions) == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 0, 1});
  const std::int32_t row_a = a.slot();
  const std::int32_t row_b = b.slot();
  CHECK(ToVector(batch.sequences) ==
        std::vector<std::int32_t>{row_a, row_a, row_a, row_a, row_a, row_a, row_b, row_b});
  REQUIRE(batch.table_updates.size() == 2);
  CHECK(BlocksOf(batch, 0) == Change{row_a, 0, {a.blocks().ids()[0], a.blocks().ids()[1]}});
  CHECK(BlocksOf(batch, 1) == Change{row_b, 0, {b.blocks().ids()[0]}});
  CHECK(batch.shape == StepShape{.tokens = 8,
                                 .logit_rows = 2,
                                 .samples = 2,
                                 .table_updates = 2,
                                 .rows = {8, 0, 0, 0},
                                 .visible_max = 64,
                                 .rows_per_sequence = 0});
  CHECK(batch.packed.size() == InputBytes(batch.shape) + 3 * sizeof(std::int32_t));
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
    const StepPlan& plan = rig.scheduler.Plan(0, {});
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
  const StepPlan& plan = rig.scheduler.Plan(0, {});
  const ForwardBatch& batch = builder.Build(plan, rig.scheduler.sequences());
  CHECK(batch.shape.rows == std::array<std::int64_t, kAttentionPaths>{4, 4, 0, 4});
  CHECK(ToVector(batch.positions) ==
        std::vector<std::int32_t>{4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11});
  REQUIRE(batch.table_updates.size() == 1);
  CHECK(batch.table_updates[0].count == 3);
}

TEST_CASE("Only changes of block tables are sent", "[batch_builder]") {
  SchedulerRig rig({.blocks = 5, .sequences_max = 2});
  BatchBuilder builder = MakeBuilder(rig);
  const std::int32_t first_slot = rig.Add({.prompt = 4, .max_tokens = 13}).slot();
  const std::int32_t victim_slot =
      rig.Add({.prompt = 5, .max_tokens = 8, .first_token = 50}).slot();
  std::map<std::int32_t, std::vector<std::int32_t>> tables;
  std::int64_t sent = 0;
  while (!rig.scheduler.running().empty() || !rig.scheduler.waiting().empty()) {
    const StepPlan& plan = rig.scheduler.Plan(0, {});
    const ForwardBatch& batch = builder.Build(plan, rig.scheduler.sequences());
    for (std::size_t i = 0; i < batch.table_updates.size(); ++i) {
      const Change change = BlocksOf(batch, i);
      sent += static_cast<std::int64_t>(change.blocks.size());
      std::vector<std::int32_t>& table = tables[change.row];
      table.resize(std::max(table.size(), change.first + change.blocks.size()));
      std::copy(change.blocks.begin(), change.blocks.end(), table.begin() + change.first);
    }
    for (std::size_t row = 0; row < batch.positions.size(); ++row) {
      const auto position = static_cast<std::size_t>(batch.positions[row]);
      CHECK(tables[batch.sequences[row]].at(position / 4) * 4 + position % 4 ==
            static_cast<std::size_t>(batch.slots[row]));
    }
    rig.scheduler.Commit(plan);
    for (const StepPlan::Row& row : plan.rows) {
      if (row.samples > 0) {
        rig.scheduler.Append(row.slot, TokenId{1});
        if (rig.scheduler.sequences()[row.slot]->behind() == 1 &&
            rig.scheduler.sequences()[row.slot]->generated() ==
                rig.scheduler.sequences()[row.slot]->request().stop.max_tokens) {
          rig.scheduler.Remove(row.slot, CachedBlocks::kKeep);
        }
      }
    }
  }
  // 4 blocks of the first; of the other one those before its preemption and all behind it.
  CHECK(rig.scheduler.preemptions() == 1);
  CHECK(sent > 4 + 3);
  CHECK(sent <= 4 + 2 * 3);
  CHECK(first_slot != victim_slot);
}

TEST_CASE("Decoding steps are padded to the next bucket, on one path", "[batch_builder]") {
  CHECK(RowBuckets(1, 64) == std::vector<std::int64_t>{1});
  CHECK(RowBuckets(7, 4) == std::vector<std::int64_t>{1, 2, 4, 7});
  CHECK(RowBuckets(256, 64) == std::vector<std::int64_t>{1, 2, 4, 8, 16, 32, 64, 128, 192, 256});
  SchedulerRig rig({.sequences_max = 7, .attention = AttentionMode::kSparse, .index_topk = 8});
  BatchBuilder builder = MakeBuilder(rig, RowBuckets(7, 4));
  rig.Add({.prompt = 3, .max_tokens = 9});
  rig.Add({.prompt = 10, .max_tokens = 9, .first_token = 50});
  rig.Add({.prompt = 5, .max_tokens = 9, .first_token = 90});
  const StepPlan& prefill = rig.scheduler.Plan(0, {});
  const ForwardBatch& eager = builder.Build(prefill, rig.scheduler.sequences());
  CHECK_FALSE(eager.recorded);
  CHECK(eager.shape.tokens == 18);
  CHECK(eager.tokens == 18);
  rig.scheduler.Commit(prefill);
  for (std::int32_t slot = 0; slot < 3; ++slot) {
    rig.scheduler.Append(slot, TokenId{1});
  }
  const ForwardBatch& batch = builder.Build(rig.scheduler.Plan(0, {}), rig.scheduler.sequences());
  CHECK(batch.recorded);
  CHECK(batch.tokens == 3);
  CHECK(batch.samples == 3);
  CHECK(batch.shape == StepShape{.tokens = 4,
                                 .logit_rows = 4,
                                 .samples = 4,
                                 .table_updates = 4,
                                 .rows = {0, 0, 0, 4},  // two of them see few keys
                                 .visible_max = 64,
                                 .rows_per_sequence = 1});
  CHECK(batch.positions[3] == 0);
  CHECK(batch.sequences[3] == rig.scheduler.slots());
  CHECK(batch.slots[3] == 16 * 4);
  CHECK(ToVector(batch.sample_rows) == std::vector<std::int32_t>{0, 1, 2, 3});
  CHECK(ToVector(batch.logit_rows) == std::vector<std::int32_t>{0, 1, 2, 3});
  CHECK(batch.sampling[3].temperature == 0.0F);
  CHECK(batch.table_updates[3].count == 0);
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
  KeptAdjustments kept;
  const auto slot = rig.scheduler.Add(std::make_unique<Sequence>(std::move(request), rig.hasher));
  for (int step = 0; step < 4; ++step) {
    const StepPlan& plan = rig.scheduler.Plan(0, {});
    const ForwardBatch& batch = builder.Build(plan, rig.scheduler.sequences());
    const std::vector<std::int32_t> suppressed =
        ignore_end ? std::vector<std::int32_t>{9} : std::vector<std::int32_t>{7, 9};
    std::vector<std::int32_t> ids;
    for (const LogitAdjustment& adjustment : kept.Of(batch, 0)) {
      CHECK(adjustment.add == -std::numeric_limits<float>::infinity());
      CHECK(adjustment.repetition == 1.0F);
      ids.push_back(adjustment.id);
    }
    CHECK(ids == (step < 2 ? suppressed : std::vector<std::int32_t>{}));
    rig.scheduler.Commit(plan);
    rig.scheduler.Append(slot, TokenId{1});
  }
}

TEST_CASE("Given tokens of prompts have entries of their own behind the rows of sequences",
          "[batch_builder]") {
  SchedulerRig rig({.prompt_logprob_rows_max = 16});
  BatchBuilder builder = MakeBuilder(rig);
  KeptAdjustments kept;
  for (const std::int32_t first : {100, 300}) {  // of a second batch as of the first
    const Sequence& a =
        rig.Add({.prompt = 4, .max_tokens = 1, .first_token = first, .prompt_logprobs = 0});
    const Sequence& b =
        rig.Add({.prompt = 3, .max_tokens = 1, .first_token = first + 50, .prompt_logprobs = 0});
    const StepPlan& plan = rig.scheduler.Plan(0, {});
    const ForwardBatch& batch = builder.Build(plan, rig.scheduler.sequences());
    const std::vector<std::int32_t> given = {first + 1, first + 2, first + 3, first + 51,
                                             first + 52};
    REQUIRE(batch.sampling.size() == 2 + given.size());  // two are drawn
    for (std::size_t i = 0; i < given.size(); ++i) {
      CAPTURE(first, i);
      CHECK(batch.sampling[2 + i].adjustments_first ==
            8 * kRowAdjustments + static_cast<std::int64_t>(i));
      const std::vector<LogitAdjustment> entry = kept.Of(batch, 2 + i);
      REQUIRE(entry.size() == 1);
      CHECK(entry[0].id == given[i]);
      CHECK(entry[0].add == kGivenAddend);
    }
    rig.scheduler.Commit(plan);
    rig.scheduler.Remove(a.slot(), CachedBlocks::kKeep);
    rig.scheduler.Remove(b.slot(), CachedBlocks::kKeep);
  }
}

TEST_CASE("A list of adjustments is sent once, then what a token changed", "[batch_builder]") {
  SchedulerRig rig({.sequences_max = 1});
  BatchBuilder builder = MakeBuilder(rig);
  KeptAdjustments kept;
  const auto request = [](float repetition) {
    Request made;
    made.prompt = {TokenId{1}, TokenId{2}, TokenId{1}};
    made.stop.max_tokens = 4;
    made.sampling.frequency_penalty = 0.5F;
    made.sampling.presence_penalty = 0.25F;
    made.sampling.repetition_penalty = repetition;
    made.sampling.logit_bias = {{.id = TokenId{9}, .add = 2.0F}};
    return made;
  };
  const auto add = [&](float repetition) {
    return rig.scheduler.Add(std::make_unique<Sequence>(request(repetition), rig.hasher));
  };
  const auto describe = [&](const ForwardBatch& batch) {
    std::map<std::int32_t, std::pair<float, float>> by_id;
    for (const LogitAdjustment& adjustment : kept.Of(batch, 0)) {
      CHECK(by_id.emplace(adjustment.id, std::pair(adjustment.add, adjustment.repetition)).second);
    }
    return by_id;
  };
  using List = std::map<std::int32_t, std::pair<float, float>>;
  const auto step = [&](std::int32_t slot, std::int32_t token) {
    const StepPlan& plan = rig.scheduler.Plan(0, {});
    List list = describe(builder.Build(plan, rig.scheduler.sequences()));
    rig.scheduler.Commit(plan);
    rig.scheduler.Append(slot, TokenId{token});
    return list;
  };
  const std::int32_t slot = add(2.0F);
  CHECK(step(slot, 9) == List{{1, {0.0F, 2.0F}}, {2, {0.0F, 2.0F}}, {9, {2.0F, 1.0F}}});
  CHECK(kept.sent == 3);
  CHECK(step(slot, 5) == List{{1, {0.0F, 2.0F}}, {2, {0.0F, 2.0F}}, {9, {1.25F, 2.0F}}});
  CHECK(step(slot, 9)[5] == std::pair(-0.75F, 2.0F));
  CHECK(step(slot, 1)[9] == std::pair(0.75F, 2.0F));
  CHECK(kept.sent == 6);
  rig.scheduler.Remove(slot, CachedBlocks::kForget);
  // The next one has its row, and another list.
  CHECK(step(add(1.0F), 2) == List{{9, {2.0F, 1.0F}}});
}

}  // namespace
}  // namespace dsa
