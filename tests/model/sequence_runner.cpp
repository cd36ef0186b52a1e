#include "tests/model/sequence_runner.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace dsa::testing {
namespace {

SchedulerConfig SchedulerConfigFor(const ModelConfig& model, const RunOptions& options) {
  SchedulerConfig config;
  config.step_tokens_max = options.step_tokens_max;
  config.step_time_target_us = options.step_time_target_us;
  config.sequences_max = std::min(options.sequences_max, options.step_tokens_max);
  config.waiting_max = 64;
  config.context_tokens_max = options.context_max;
  config.attention = model.has_indexer() ? options.attention : AttentionMode::kDense;
  config.index_topk = model.index_topk;
  config.masked_mha_until = options.masked_until;
  config.masked_rows_min = 1;
  return config;
}

Request RequestOf(const SequenceRequest& wanted) {
  Request request;
  for (const std::int32_t id : wanted.prompt) {
    request.prompt.push_back(TokenId{id});
  }
  request.sampling = wanted.sampling.value_or(SamplingParams{.temperature = 0.0F});
  request.stop.max_tokens = wanted.max_tokens;
  request.stop.ignore_end = true;
  request.prompt_logits = wanted.prompt_logits;
  return request;
}

std::int64_t MadeUpTimeUs(const StepWork& work) {
  constexpr std::int64_t kKeysPerUs = 16;
  return std::accumulate(work.rows.begin(), work.rows.end(), std::int64_t{1}) +
         std::accumulate(work.keys.begin(), work.keys.end(), std::int64_t{0}) / kKeysPerUs;
}

}  // namespace

SequenceRunner::SequenceRunner(Backend& backend, const LoadedModel& model,
                               const RunOptions& options)
    : SequenceRunner(
          [&](const ModelExecutorConfig& config) -> std::unique_ptr<StepExecutor> {
            return ModelExecutor::Create(backend, model, config).value();
          },
          model.config, options) {}

SequenceRunner::SequenceRunner(const MakeExecutor& make, const ModelConfig& model,
                               const RunOptions& options)
    : options_(options),
      vocabulary_(model.vocabulary),
      pool_(options.blocks, kTokensPerBlock),
      cache_(pool_),
      hasher_({.identity = "test", .tokens_per_block = kTokensPerBlock}),
      scheduler_(SchedulerConfigFor(model, options),
                 {.pool = pool_, .cache = cache_, .hasher = hasher_}) {
  const std::int64_t logit_rows = options.step_tokens_max;
  const std::int64_t row_adjustments = RowAdjustments(vocabulary_, options.context_max, 0);
  const bool selects = scheduler_.config().attention == AttentionMode::kSparse;
  std::vector<StepShape> recorded;
  if (options.record_at_start) {
    recorded = DecodeShapes(options.row_buckets, options.context_max,
                            selects ? model.index_topk : options.context_max);
  }
  for (StepShape& shape : recorded) {
    shape.exchange_rows = options.data_ranks > 1 ? shape.tokens : 0;
  }
  executor_ = make(
      {.limits = {.tokens_max = options.step_tokens_max,
                  .sequences_max = options.sequences_max,
                  .table_rows_max = scheduler_.slots(),
                  .context_max = options.context_max,
                  .logit_rows_max = logit_rows,
                  .given_rows_max = 0,
                  .row_adjustments = row_adjustments,
                  .masked_until = options.masked_until,
                  .score_bytes_max = options.score_bytes_max,
                  .logits_rows_host = logit_rows},
       .blocks = options.blocks,
       .kv_format = options.kv_format,
       .vocabulary_limit = static_cast<std::int32_t>(vocabulary_),
       .recorded = std::move(recorded),
       .padding_blocks = PaddingBlocks(options.row_buckets, options.data_ranks, kTokensPerBlock)});
  builder_ = std::make_unique<BatchBuilder>(
      BatchBuilder::Config{.step_tokens_max = options.step_tokens_max,
                           .sequences_max = options.sequences_max,
                           .slots_max = scheduler_.slots(),
                           .context_tokens_max = options.context_max,
                           .tokens_per_block = kTokensPerBlock,
                           .end_ids = {},
                           .given_rows_max = 0,
                           .row_adjustments = row_adjustments,
                           .row_buckets = options.row_buckets,
                           .padding_block = options.blocks});
}

std::vector<SequenceOutput> SequenceRunner::Run(const std::vector<SequenceRequest>& requests) {
  Submit(requests);
  while (is_busy()) {
    const BatchShape shape = Plan();
    DSA_CHECK(shape.shape.tokens > 0, "SequenceRunner: nothing can run");
    Launch(shape);
    Finish();
  }
  return std::move(outputs_);
}

void SequenceRunner::Submit(const std::vector<SequenceRequest>& requests) {
  outputs_.assign(requests.size(), {});
  output_of_slot_.assign(static_cast<std::size_t>(scheduler_.slots()), -1);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const std::int32_t slot =
        scheduler_.Add(std::make_unique<Sequence>(RequestOf(requests[i]), hasher_));
    output_of_slot_[static_cast<std::size_t>(slot)] = static_cast<std::int32_t>(i);
  }
}

BatchShape SequenceRunner::Plan() {
  plan_ = &scheduler_.Plan(0, costs_);
  return builder_->ShapeOf(*plan_, scheduler_.sequences());
}

void SequenceRunner::Launch(const BatchShape& shape) {
  batch_ = builder_->Build(*plan_, scheduler_.sequences(), shape);
  batch_.copy_logits = options_.logits;
  steps_recorded_ += batch_.recorded ? 1 : 0;
  logit_rows_.assign(batch_.logit_rows.begin(), batch_.logit_rows.end());
  positions_.assign(batch_.positions.begin(), batch_.positions.end());
  if (before_step) {
    before_step(batch_);
  }
  executor_->Launch(batch_);
}

SequenceOutput& SequenceRunner::OutputOf(std::int32_t slot) {
  return outputs_[static_cast<std::size_t>(output_of_slot_[static_cast<std::size_t>(slot)])];
}

void SequenceRunner::Finish() {
  const StepResult& result = executor_->Collect();
  // The plan's rows are the batch's rows in order: which sequence each one belongs to.
  std::vector<std::int32_t> slot_of_row;
  for (const StepPlan::Row& row : plan_->rows) {
    slot_of_row.insert(slot_of_row.end(), static_cast<std::size_t>(row.tokens), row.slot);
  }
  KeepLogits(result, slot_of_row);
  for (std::size_t row = 0; row < slot_of_row.size(); ++row) {
    SequenceOutput& target = OutputOf(slot_of_row[row]);
    target.faulty = target.faulty || result.row_faults[row] != 0;
    if (route_of_row) {
      target.routes[positions_[row]] = route_of_row(static_cast<std::int64_t>(row));
    }
  }
  ++steps_;
  if (plan_->tokens > 0) {
    costs_.Measure(plan_->work, MadeUpTimeUs(plan_->work));
  }
  scheduler_.Commit(*plan_);
  TakeTokens(result);
}

void SequenceRunner::KeepLogits(const StepResult& result,
                                std::span<const std::int32_t> slot_of_row) {
  for (std::size_t i = 0; i < logit_rows_.size() && !result.logits.empty(); ++i) {
    const auto row = static_cast<std::size_t>(logit_rows_[i]);
    if (row >= slot_of_row.size()) {
      break;  // padding
    }
    const auto first = result.logits.begin() + static_cast<std::int64_t>(i) * vocabulary_;
    OutputOf(slot_of_row[row]).logits[positions_[row]] =
        std::vector<float>(first, first + vocabulary_);
  }
}

void SequenceRunner::TakeTokens(const StepResult& result) {
  std::vector<std::int32_t> sampling_slots;
  for (const StepPlan::Row& row : plan_->rows) {
    if (row.samples > 0) {
      sampling_slots.push_back(row.slot);
    }
  }
  for (std::size_t i = 0; i < sampling_slots.size(); ++i) {
    const std::int32_t slot = sampling_slots[i];
    SequenceOutput& target = OutputOf(slot);
    target.faulty = target.faulty || result.sample_faults[i] != 0;
    target.ids.push_back(result.tokens[i]);
    scheduler_.Append(slot, TokenId{result.tokens[i]});
    const Sequence& sequence = *scheduler_.sequences()[static_cast<std::size_t>(slot)];
    if (sequence.generated() == sequence.request().stop.max_tokens) {
      target.cache_hit_tokens = sequence.cache_hit_tokens();
      target.preemptions = sequence.preemptions();
      scheduler_.Remove(slot, CachedBlocks::kKeep);
    }
  }
}

void SequenceRunner::ShuffleFreeBlocks() {
  std::vector<BlockRef> blocks;
  while (auto block = pool_.TryAllocate()) {
    blocks.push_back(std::move(*block));
  }
  // A fixed permutation by a stride that is coprime to any count below it.
  constexpr std::size_t kStride = 7919;
  std::vector<BlockRef> order;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    order.push_back(std::move(blocks[i * kStride % blocks.size()]));
  }
  blocks.clear();
  while (!order.empty()) {
    order.pop_back();
  }
}

bool SameBits(const std::vector<SequenceOutput>& a, const std::vector<SequenceOutput>& b) {
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (a[i].ids != b[i].ids || a[i].faulty || b[i].faulty || a[i].logits.empty() ||
        a[i].logits != b[i].logits) {
      return false;
    }
  }
  return a.size() == b.size();
}

}  // namespace dsa::testing
