#include "server/engine/batch_builder.h"

#include "common/check.h"
#include "scheduler/validate.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace dsa {

BatchBuilder::BatchBuilder(Config config) : config_(std::move(config)) {
  const std::int64_t tokens = config_.step_tokens_max;
  const std::int64_t sequences = config_.sequences_max;
  const std::int64_t blocks = config_.context_tokens_max / config_.tokens_per_block + 1;
  token_ids_.reserve(tokens);
  positions_.reserve(tokens);
  slots_.reserve(tokens);
  sequences_.reserve(tokens);
  block_tables_.resize(sequences * blocks);
  filled_rows_.resize(sequences);
  runs_.reserve(3);
  logit_rows_.reserve(tokens);
  sample_rows_.reserve(sequences);
  sampling_.reserve(sequences);
  adjustments_.reserve(sequences *
                       (static_cast<std::int64_t>(config_.end_ids.size()) + kStopIdsMax));
  index_of_slot_.assign(config_.slots_max, -1);
  slot_of_index_.reserve(sequences);
  blocks_of_index_.reserve(sequences);
}

const ForwardBatch& BatchBuilder::Build(const StepPlan& plan,
                                        std::span<const std::unique_ptr<Sequence>> sequences) {
  DSA_CHECK(plan.tokens <= config_.step_tokens_max, "BatchBuilder: {} tokens, at most {}",
            plan.tokens, config_.step_tokens_max);
  DSA_CHECK(plan.sequences <= config_.sequences_max, "BatchBuilder: {} sequences, at most {}",
            plan.sequences, config_.sequences_max);
  for (const std::int32_t slot : slot_of_index_) {
    index_of_slot_[slot] = -1;
  }
  slot_of_index_.clear();
  blocks_of_index_.clear();
  token_ids_.resize(plan.tokens);
  positions_.resize(plan.tokens);
  slots_.resize(plan.tokens);
  sequences_.resize(plan.tokens);
  tokens_ = 0;
  runs_.clear();
  logit_rows_.clear();
  sample_rows_.clear();
  sampling_.clear();
  adjustments_.clear();
  copy_logits_ = false;
  for (const StepPlan::Row& row : plan.rows) {
    const Sequence* sequence = sequences[row.slot].get();
    DSA_CHECK(sequence != nullptr && sequence->id() == row.sequence,
              "BatchBuilder: sequence {} is not in slot {}", Value(row.sequence), row.slot);
    AddRow(row, *sequence);
  }
  DSA_CHECK(tokens_ == plan.tokens, "BatchBuilder: {} tokens in the rows, {} in the plan", tokens_,
            plan.tokens);
  const std::int64_t stride = FillBlockTables(sequences);
  batch_ = {.token_ids = token_ids_,
            .positions = positions_,
            .slots = slots_,
            .sequences = sequences_,
            .block_tables = std::span(block_tables_).first(slot_of_index_.size() * stride),
            .block_table_stride = stride,
            .runs = runs_,
            .logit_rows = logit_rows_,
            .sample_rows = sample_rows_,
            .sampling = sampling_,
            .adjustments = adjustments_,
            .copy_logits = copy_logits_};
  return batch_;
}

void BatchBuilder::AddRow(const StepPlan::Row& row, const Sequence& sequence) {
  const auto first_row = static_cast<std::int32_t>(tokens_);
  const auto rows = static_cast<std::int32_t>(row.tokens);
  if (!runs_.empty() && runs_.back().path == row.path) {
    runs_.back().rows += rows;
  } else {
    runs_.push_back({.path = row.path, .first_row = first_row, .rows = rows});
  }
  AddTokens(row, sequence);
  AddLogitRows(row, sequence);
  if (row.sample) {
    AddSampling(sequence);
  }
}

void BatchBuilder::AddTokens(const StepPlan::Row& row, const Sequence& sequence) {
  const std::int32_t index = SequenceIndex(sequence);
  const std::int64_t end = row.first_position + row.tokens;
  DSA_CHECK(end <= sequence.tokens(), "BatchBuilder: position {} of {} tokens", end - 1,
            sequence.tokens());
  const std::span<const TokenId> ids = sequence.token_ids();
  std::int32_t* const token_ids = token_ids_.data() + tokens_;
  std::int32_t* const positions = positions_.data() + tokens_;
  std::int64_t* const slots = slots_.data() + tokens_;
  for (std::int64_t i = 0; i < row.tokens; ++i) {
    const std::int64_t position = row.first_position + i;
    token_ids[i] = Value(ids[position]);
    positions[i] = static_cast<std::int32_t>(position);
    slots[i] = sequence.blocks().Slot(position);
  }
  std::fill_n(sequences_.begin() + tokens_, row.tokens, index);
  tokens_ += row.tokens;
  const std::int64_t blocks = (end + config_.tokens_per_block - 1) / config_.tokens_per_block;
  blocks_of_index_[index] = std::max(blocks_of_index_[index], blocks);
}

// Behind AddTokens: the row's tokens are the last of the batch.
void BatchBuilder::AddLogitRows(const StepPlan::Row& row, const Sequence& sequence) {
  if (sequence.request().prompt_logits == PromptLogits::kAll) {
    copy_logits_ = true;
    const std::int64_t in_prompt = sequence.prompt_tokens() - row.first_position;
    const std::int64_t rows = std::min(row.tokens - (row.sample ? 1 : 0), in_prompt);
    for (std::int64_t i = 0; i < rows; ++i) {
      logit_rows_.push_back(static_cast<std::int32_t>(tokens_ - row.tokens + i));
    }
  }
  if (row.sample) {
    logit_rows_.push_back(static_cast<std::int32_t>(tokens_ - 1));
  }
}

// Behind AddLogitRows: the row to sample from is the last of them.
void BatchBuilder::AddSampling(const Sequence& sequence) {
  const SamplingParams& params = sequence.request().sampling;
  const StopConditions& stop = sequence.request().stop;
  const auto adjustments_first = static_cast<std::int32_t>(adjustments_.size());
  if (sequence.generated() < stop.min_tokens) {
    const auto suppress = [this](TokenId id) {
      adjustments_.push_back(
          {.id = Value(id), .add = -std::numeric_limits<float>::infinity(), .repetition = 1.0F});
    };
    if (!stop.ignore_end) {
      std::for_each(config_.end_ids.begin(), config_.end_ids.end(), suppress);
    }
    std::for_each(stop.stop_ids.begin(), stop.stop_ids.end(), suppress);
  }
  sample_rows_.push_back(static_cast<std::int32_t>(logit_rows_.size()) - 1);
  sampling_.push_back(
      {.temperature = params.temperature,
       .min_p = params.min_p,
       .top_p = params.top_p,
       .top_k = params.top_k,
       .seed = params.seed,
       .position = sequence.tokens(),
       .adjustments_first = adjustments_first,
       .adjustments_count = static_cast<std::int32_t>(adjustments_.size()) - adjustments_first,
       .top_logprobs = params.top_logprobs.value_or(0)});
}

std::int32_t BatchBuilder::SequenceIndex(const Sequence& sequence) {
  std::int32_t& index = index_of_slot_[sequence.slot()];
  if (index < 0) {
    index = static_cast<std::int32_t>(slot_of_index_.size());
    slot_of_index_.push_back(sequence.slot());
    blocks_of_index_.push_back(0);
  }
  return index;
}

// Returns the stride: as narrow as the longest sequence of the batch allows.
std::int64_t BatchBuilder::FillBlockTables(std::span<const std::unique_ptr<Sequence>> sequences) {
  const auto widest = std::max_element(blocks_of_index_.begin(), blocks_of_index_.end());
  const std::int64_t stride = widest == blocks_of_index_.end() ? 0 : *widest;
  if (stride != filled_stride_) {
    std::fill(filled_rows_.begin(), filled_rows_.end(), FilledRow{});
    filled_stride_ = stride;
  }
  for (std::size_t index = 0; index < slot_of_index_.size(); ++index) {
    const Sequence& sequence = *sequences[slot_of_index_[index]];
    const FilledRow wanted{.sequence = sequence.id(),
                           .changes = sequence.blocks().changes(),
                           .blocks = blocks_of_index_[index]};
    if (filled_rows_[index] != wanted) {
      const auto blocks = sequence.blocks().ids();
      std::int32_t* const out = block_tables_.data() + static_cast<std::int64_t>(index) * stride;
      std::copy_n(blocks.begin(), wanted.blocks, out);
      std::fill(out + wanted.blocks, out + stride, -1);
      filled_rows_[index] = wanted;
    }
  }
  return stride;
}

}  // namespace dsa
