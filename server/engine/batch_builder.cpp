#include "server/engine/batch_builder.h"

#include "common/check.h"
#include "scheduler/validate.h"

#include <algorithm>
#include <utility>

namespace dsa {

// The scheduler and the kernels cannot see each other.
static_assert(kTopLogprobsLimit == kTopLogprobsMax);

std::vector<std::int64_t> RowBuckets(std::int64_t rows_max, std::int32_t tokens_per_block) {
  std::vector<std::int64_t> buckets;
  for (std::int64_t rows = 1; rows < rows_max;
       rows += std::min<std::int64_t>(rows, tokens_per_block)) {
    buckets.push_back(rows);
  }
  buckets.push_back(rows_max);
  return buckets;
}

std::int32_t PaddingBlocks(const std::vector<std::int64_t>& row_buckets, std::int64_t data_ranks,
                           std::int32_t tokens_per_block) {
  const std::int64_t rows = data_ranks > 1 && !row_buckets.empty() ? row_buckets.back() : 1;
  return static_cast<std::int32_t>((rows + tokens_per_block - 1) / tokens_per_block);
}

namespace {

std::int64_t PackedBytes(const BatchBuilder::Config& config) {
  const std::int64_t sequences = config.sequences_max;
  const std::int64_t blocks = config.context_tokens_max / config.tokens_per_block + 1;
  return InputBytes({.tokens = config.step_tokens_max,
                     .logit_rows = config.step_tokens_max,
                     .samples = sequences + config.given_rows_max,
                     .table_updates = sequences,
                     .rows = {},
                     .exchange_rows = config.step_tokens_max}) +
         (sequences * (config.row_adjustments * kWordsPerAdjustment + blocks) +
          config.given_rows_max * kWordsPerAdjustment) *
             static_cast<std::int64_t>(sizeof(std::int32_t));
}

// A step of decoding sequences gets a shape that many others share.  Its rows take one path: of a
// row that sees at most index_topk keys the selection holds all of them, which gives the same bits.
StepShape BucketShape(std::int64_t bucket, const StepShape& shape) {
  const bool sparse = shape.rows[static_cast<std::size_t>(AttentionPath::kSparse)] > 0;
  StepShape padded = DecodeShape(bucket, sparse ? AttentionPath::kSparse : AttentionPath::kDense,
                                 shape.visible_max);
  padded.exchange_rows = shape.exchange_rows;
  return padded;
}

}  // namespace

void AgreeOnStep(std::span<BatchShape> ranks) {
  StepShape all{};  // what the shapes of a recorded step are made of, and the rows of the largest
  std::int64_t bucket = 0;
  bool is_recorded = true;
  for (const BatchShape& rank : ranks) {
    bucket = std::max(bucket, rank.bucket);
    is_recorded = is_recorded && (rank.bucket > 0 || rank.shape.tokens == 0);
    all.exchange_rows = std::max(all.exchange_rows, rank.shape.tokens);
    all.visible_max = std::max(all.visible_max, rank.shape.visible_max);
    for (std::size_t path = 0; path < all.rows.size(); ++path) {
      all.rows[path] += rank.shape.rows[path];
    }
  }
  for (BatchShape& rank : ranks) {
    if (is_recorded) {
      all.exchange_rows = bucket;
      rank = {.shape = all, .bucket = bucket};
    } else {
      rank.shape.exchange_rows = all.exchange_rows;
      rank.bucket = 0;
    }
  }
}

BatchBuilder::BatchBuilder(Config config)
    : config_(std::move(config)),
      packed_bytes_(PackedBytes(config_)),
      packed_(
          std::make_unique_for_overwrite<std::uint8_t[]>(static_cast<std::size_t>(packed_bytes_))),
      adjustment_rows_({.rows = config_.sequences_max,
                        .row_adjustments = config_.row_adjustments,
                        .given_rows_max = config_.given_rows_max,
                        .slots = config_.slots_max,
                        .end_ids = config_.end_ids}) {
  const std::int64_t sequences = config_.sequences_max;
  listed_.reserve(sequences);
  first_logit_row_.reserve(static_cast<std::size_t>(kAttentionPaths * sequences));
  blocks_of_slot_.resize(config_.slots_max);
  filled_.resize(config_.slots_max);
  const auto& buckets = config_.row_buckets;
  DSA_CHECK(std::is_sorted(buckets.begin(), buckets.end()) &&
                (buckets.empty() || (buckets.front() > 0 && buckets.back() == sequences)),
            "BatchBuilder: row_buckets do not ascend to {} sequences", sequences);
}

BatchShape BatchBuilder::ShapeOf(const StepPlan& plan,
                                 std::span<const std::unique_ptr<Sequence>> sequences) const {
  return {.shape = RowsOf(plan, sequences), .bucket = BucketOf(plan)};
}

const ForwardBatch& BatchBuilder::Build(const StepPlan& plan,
                                        std::span<const std::unique_ptr<Sequence>> sequences,
                                        const BatchShape& batch_shape) {
  DSA_CHECK(plan.tokens <= config_.step_tokens_max, "BatchBuilder: {} tokens, at most {}",
            plan.tokens, config_.step_tokens_max);
  DSA_CHECK(plan.sequences <= config_.sequences_max, "BatchBuilder: {} sequences, at most {}",
            plan.sequences, config_.sequences_max);
  const std::int64_t bucket = batch_shape.bucket;
  const StepShape shape = bucket > 0 ? BucketShape(bucket, batch_shape.shape) : batch_shape.shape;
  DSA_CHECK(plan.tokens <= shape.tokens &&
                static_cast<std::int64_t>(plan.sample_rows.size()) <= shape.samples &&
                plan.sequences <= shape.table_updates,
            "BatchBuilder: {} tokens of {} sequences, {} sampled, in a step of {} rows",
            plan.tokens, plan.sequences, plan.sample_rows.size(), shape.tokens);
  inputs_ = InputsAt(packed_.get(), shape);
  tokens_ = 0;
  logit_rows_ = 0;
  samples_ = 0;
  words_ = 0;
  copy_logits_ = false;
  given_ = 0;
  adjustment_rows_.BeginBatch(sequences);
  first_logit_row_.clear();
  for (const StepPlan::Row& row : plan.rows) {
    const Sequence* sequence = sequences[row.slot].get();
    DSA_CHECK(sequence != nullptr && sequence->id() == row.sequence,
              "BatchBuilder: sequence {} is not in slot {}", Value(row.sequence), row.slot);
    AddRow(row, *sequence);
  }
  DSA_CHECK(tokens_ == plan.tokens, "BatchBuilder: {} tokens in the rows, {} in the plan", tokens_,
            plan.tokens);
  AddGiven(plan, sequences);
  AddPadding();
  FillTableUpdates();
  FillBatch(shape);
  batch_.recorded = bucket > 0;
  return batch_;
}

StepShape BatchBuilder::RowsOf(const StepPlan& plan,
                               std::span<const std::unique_ptr<Sequence>> sequences) const {
  StepShape shape{.tokens = plan.tokens,
                  .samples = static_cast<std::int64_t>(plan.sample_rows.size()),
                  .table_updates = plan.sequences};
  shape.logit_rows = shape.samples;
  for (const StepPlan::Row& row : plan.rows) {
    shape.samples += row.prompt_logprobs;
    shape.rows[static_cast<std::size_t>(row.path)] += row.tokens;
    shape.visible_max = std::max(shape.visible_max, row.first_position + row.tokens);
    if (row.tokens > row.samples) {  // else it has no row but the one that is sampled
      shape.logit_rows += PromptLogitRows(row, *sequences[row.slot]);
    }
  }
  shape.visible_max = RoundUpVisible(shape.visible_max, config_.context_tokens_max);
  shape.rows_per_sequence = plan.tokens == plan.sequences ? 1 : 0;
  return shape;
}

// The rows that a decoding step is padded to; 0 where the step is not one.
std::int64_t BatchBuilder::BucketOf(const StepPlan& plan) const {
  const auto decodes = [](const StepPlan::Row& row) {
    return !IsMasked(row.path) && row.samples == 1;
  };
  const std::vector<std::int64_t>& buckets = config_.row_buckets;
  if (buckets.empty() || plan.rows.empty() || plan.tokens != plan.sequences ||
      !std::all_of(plan.rows.begin(), plan.rows.end(), decodes)) {
    return 0;
  }
  return *std::lower_bound(buckets.begin(), buckets.end(), plan.tokens);
}

void BatchBuilder::AddRow(const StepPlan::Row& row, const Sequence& sequence) {
  first_logit_row_.push_back(static_cast<std::int32_t>(logit_rows_));
  given_ += row.prompt_logprobs;
  AddTokens(row, sequence);
  AddLogitRows(row, sequence);
  if (row.samples > 0) {
    AddSampling(sequence);
  }
}

void BatchBuilder::AddTokens(const StepPlan::Row& row, const Sequence& sequence) {
  const std::int64_t end = row.first_position + row.tokens;
  DSA_CHECK(end <= sequence.tokens(), "BatchBuilder: position {} of {} tokens", end - 1,
            sequence.tokens());
  const std::span<const TokenId> ids = sequence.token_ids();
  for (std::int64_t position = row.first_position; position < end; ++position) {
    inputs_.token_ids.data[tokens_] = Value(ids[position]);
    inputs_.positions.data[tokens_] = static_cast<std::int32_t>(position);
    inputs_.slots.data[tokens_] = sequence.blocks().Slot(position);
    inputs_.sequences.data[tokens_] = sequence.slot();
    ++tokens_;
  }
  std::int64_t& blocks = blocks_of_slot_[sequence.slot()];
  if (blocks == 0) {
    listed_.push_back({.sequence = sequence.id(),
                       .slot = sequence.slot(),
                       .clears = sequence.blocks().clears(),
                       .ids = sequence.blocks().ids().data()});
  }
  blocks = std::max(blocks, (end + config_.tokens_per_block - 1) / config_.tokens_per_block);
}

std::int64_t BatchBuilder::PromptLogitRows(const StepPlan::Row& row, const Sequence& sequence) {
  if (sequence.request().prompt_logits == PromptLogits::kNone) {
    return row.prompt_logprobs;
  }
  const std::int64_t in_prompt = sequence.prompt_tokens() - row.first_position;
  return std::max<std::int64_t>(0, std::min(row.tokens - row.samples, in_prompt));
}

// Behind AddTokens: the row's tokens are the last of the batch.
void BatchBuilder::AddLogitRows(const StepPlan::Row& row, const Sequence& sequence) {
  std::int32_t* const logit_rows = inputs_.logit_rows.data;
  copy_logits_ = copy_logits_ || sequence.request().prompt_logits == PromptLogits::kAll;
  const std::int64_t rows = PromptLogitRows(row, sequence);
  for (std::int64_t i = 0; i < rows; ++i) {
    logit_rows[logit_rows_++] = static_cast<std::int32_t>(tokens_ - row.tokens + i);
  }
  if (row.samples > 0) {
    logit_rows[logit_rows_++] = static_cast<std::int32_t>(tokens_ - 1);
  }
}

// Behind AddLogitRows: the row to sample from is the last of them.
void BatchBuilder::AddSampling(const Sequence& sequence) {
  const SamplingParams& params = sequence.request().sampling;
  std::int32_t first = 0;
  std::int32_t count = 0;
  TableUpdate& update = inputs_.adjustment_updates.data[samples_];
  if (sequence.adjusts_logits()) {
    const AdjustmentRows::Place place = adjustment_rows_.Put(sequence, inputs_.words, words_);
    first = place.first;
    count = place.count;
    update = place.update;
  } else {  // as nearly all; a copy of a place that was just written would wait for it
    update = {};
  }
  inputs_.sample_rows.data[samples_] = static_cast<std::int32_t>(logit_rows_) - 1;
  inputs_.sampling.data[samples_] = {.temperature = params.temperature,
                                     .min_p = params.min_p,
                                     .top_p = params.top_p,
                                     .top_k = params.top_k,
                                     .seed = params.seed,
                                     .position = sequence.tokens(),
                                     .adjustments_first = first,
                                     .adjustments_count = count,
                                     .top_logprobs = params.top_logprobs.value_or(0)};
  ++samples_;
}

void BatchBuilder::AddGiven(const StepPlan& plan,
                            std::span<const std::unique_ptr<Sequence>> sequences) {
  if (given_ == 0) {
    return;
  }
  for (std::size_t index = 0; index < plan.rows.size(); ++index) {
    const StepPlan::Row& row = plan.rows[index];
    const Sequence& sequence = *sequences[row.slot];
    for (std::int32_t i = 0; i < row.prompt_logprobs; ++i) {
      const std::int64_t next = row.first_position + i + 1;
      inputs_.sample_rows.data[samples_] = first_logit_row_[index] + i;
      const AdjustmentRows::Place adjustments =
          adjustment_rows_.PutGiven(sequence.token_ids()[next], inputs_.words, words_);
      inputs_.adjustment_updates.data[samples_] = adjustments.update;
      inputs_.sampling.data[samples_] = {.temperature = 0.0F,
                                         .min_p = 0.0F,
                                         .top_p = 1.0F,
                                         .top_k = 0,
                                         .seed = 0,
                                         .position = next,
                                         .adjustments_first = adjustments.first,
                                         .adjustments_count = adjustments.count,
                                         .top_logprobs = *sequence.request().prompt_logprobs};
      ++samples_;
    }
  }
}

// Rows that nobody asked for, up to the step's shape: all at position 0 of a table row of their
// own, where they read the key that the first of them writes; each writes into a slot of its own.
void BatchBuilder::AddPadding() {
  const std::int64_t rows = inputs_.token_ids.size;
  for (std::int64_t row = tokens_; row < rows; ++row) {
    inputs_.token_ids.data[row] = 0;
    inputs_.positions.data[row] = 0;
    inputs_.slots.data[row] =
        std::int64_t{config_.padding_block} * config_.tokens_per_block + (row - tokens_);
    inputs_.sequences.data[row] = static_cast<std::int32_t>(config_.slots_max);
    inputs_.logit_rows.data[row] = static_cast<std::int32_t>(row);
    inputs_.sample_rows.data[row] = static_cast<std::int32_t>(row);
    inputs_.adjustment_updates.data[row] = {};
    inputs_.sampling.data[row] = {.temperature = 0.0F,
                                  .min_p = 0.0F,
                                  .top_p = 1.0F,
                                  .top_k = 0,
                                  .seed = 0,
                                  .position = 1,
                                  .adjustments_first = 0,
                                  .adjustments_count = 0,
                                  .top_logprobs = 0};
  }
  std::fill_n(inputs_.live_rows.data, inputs_.live_rows.size, static_cast<std::int32_t>(tokens_));
}

// The ids go behind what adjustments sent.  A table only grows until it is cleared, so that what
// was sent of it stays true.
void BatchBuilder::FillTableUpdates() {
  TableUpdate* update = inputs_.table_updates.data;
  for (const ListedTable& table : listed_) {
    FilledRow& filled = filled_[table.slot];
    if (filled.sequence != table.sequence || filled.clears != table.clears) {
      filled = {.sequence = table.sequence, .clears = table.clears, .blocks = 0};
    }
    const std::int64_t wanted = std::exchange(blocks_of_slot_[table.slot], 0);
    const std::int64_t count = std::max<std::int64_t>(0, wanted - filled.blocks);
    *update++ = {.row = table.slot,
                 .first = static_cast<std::int32_t>(filled.blocks),
                 .count = static_cast<std::int32_t>(count),
                 .source = static_cast<std::int32_t>(words_)};
    std::copy_n(table.ids + filled.blocks, count, inputs_.words + words_);
    words_ += count;
    filled.blocks += count;
  }
  listed_.clear();
  std::fill(update, inputs_.table_updates.data + inputs_.table_updates.size, TableUpdate{});
}

void BatchBuilder::FillBatch(const StepShape& shape) {
  const std::span<const std::int32_t> words(inputs_.words, static_cast<std::size_t>(words_));
  const auto fixed_bytes = static_cast<std::size_t>(InputBytes(shape));
  DSA_CHECK(static_cast<std::int64_t>(fixed_bytes + words.size_bytes()) <= packed_bytes_,
            "BatchBuilder: {} bytes of {}", fixed_bytes + words.size_bytes(), packed_bytes_);
  batch_ = {.shape = shape,
            .tokens = tokens_,
            .samples = samples_,
            .packed = {packed_.get(), fixed_bytes + words.size_bytes()},
            .token_ids = SpanOf(inputs_.token_ids),
            .positions = SpanOf(inputs_.positions),
            .slots = SpanOf(inputs_.slots),
            .sequences = SpanOf(inputs_.sequences),
            .logit_rows = SpanOf(inputs_.logit_rows),
            .sample_rows = SpanOf(inputs_.sample_rows),
            .sampling = SpanOf(inputs_.sampling),
            .table_updates = SpanOf(inputs_.table_updates),
            .adjustment_updates = SpanOf(inputs_.adjustment_updates),
            .words = words,
            .copy_logits = copy_logits_,
            .recorded = false};
}

}  // namespace dsa
