#include "model/limits.h"

#include "common/check.h"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr std::int64_t kI32Bytes = 4;
constexpr std::int64_t kF32Bytes = 4;
constexpr std::int64_t kPartialBytesMax = 8;  // of a Backend::PartialSumType
constexpr std::int64_t kMaskWordBytes = 8;
constexpr std::int64_t kMaskWordBits = 64;

std::int64_t CeilDivide(std::int64_t value, std::int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

void CheckLimits(const StepLimits& limits) {
  DSA_CHECK(limits.tokens_max > 0, "StepLimits: tokens_max={}", limits.tokens_max);
  DSA_CHECK(limits.sequences_max > 0, "StepLimits: sequences_max={}", limits.sequences_max);
  DSA_CHECK(limits.table_rows_max > 0, "StepLimits: table_rows_max={}", limits.table_rows_max);
  DSA_CHECK(limits.context_max > 0, "StepLimits: context_max={}", limits.context_max);
  DSA_CHECK(limits.logit_rows_max > 0, "StepLimits: logit_rows_max={}", limits.logit_rows_max);
  DSA_CHECK(limits.given_rows_max >= 0, "StepLimits: given_rows_max={}", limits.given_rows_max);
  DSA_CHECK(limits.row_adjustments >= 0, "StepLimits: row_adjustments={}", limits.row_adjustments);
  DSA_CHECK(limits.masked_until >= 0, "StepLimits: masked_until={}", limits.masked_until);
  DSA_CHECK(limits.score_bytes_max > 0, "StepLimits: score_bytes_max={}", limits.score_bytes_max);
  DSA_CHECK(limits.logits_rows_host >= 0, "StepLimits: logits_rows_host={}",
            limits.logits_rows_host);
}

std::int64_t MlpWidth(const RankShape& rank) {
  return std::max(rank.dense_width.count, rank.shared_width.count);
}

ScratchLimits PlanScratch(const ModelConfig& config, const RankShape& rank,
                          const StepLimits& limits) {
  const bool leaves_sums = rank.data_ranks == 1 ? rank.ranks > 1 : limits.combines_parts;
  const std::int64_t widest_projection =
      std::max({config.hidden, config.q_latent, rank.heads.count * config.value,
                rank.heads.count * (config.nope + kRopeWidth), kLatentWidth + kRopeWidth,
                config.index_heads * kIndexHeadWidth, MlpWidth(rank), rank.expert_width.count});
  return {.tokens_max = limits.tokens_max * rank.data_ranks,  // all rows, on one rank's experts
          .context_max = limits.context_max,
          .masked_context_max = std::min(limits.masked_until, limits.context_max),
          .hidden = config.hidden,
          .heads = rank.heads.count,
          .nope = config.nope,
          .value = config.value,
          .index_heads = config.index_heads,
          .index_topk = config.index_topk,
          .experts = config.experts,  // the gate is for all of them
          .experts_per_token = config.experts_per_token,
          .expert_width = rank.expert_width.count,
          .linear_width_max = widest_projection,
          .logit_rows_max = limits.logit_rows_max,
          .vocabulary = config.vocabulary,
          .expert_sum_type = leaves_sums ? DataType::kF64 : DataType::kF32};
}

// Fills the plan's bytes, buffer by buffer.
class Planner final {
 public:
  Planner(const ModelConfig& config, const RankShape& rank, const StepLimits& limits,
          WorkspacePlan& plan)
      : config_(config),
        rank_(rank),
        limits_(limits),
        activation_bytes_(SizeOf(config.activation_type)),
        plan_(plan) {}

  void Batch() {
    const StepShape largest{.tokens = limits_.tokens_max,
                            .logit_rows = limits_.logit_rows_max,
                            .samples = limits_.sequences_max + limits_.given_rows_max,
                            .table_updates = limits_.sequences_max,
                            .rows = {},
                            .exchange_rows = rank_.data_ranks > 1 ? limits_.tokens_max : 0};
    Set(Buffer::kStepInputs, InputBytes(largest) + StepWordsMax(limits_) * kI32Bytes);
    Set(Buffer::kStepOutputs, OutputBytes(largest, ExpertsOf(config_)));
    Set(Buffer::kBlockTables,
        (limits_.table_rows_max + 1) * BlockTableColumns(limits_.context_max) * kI32Bytes);
    Set(Buffer::kAdjustments, AdjustmentTableRows(limits_) * limits_.row_adjustments *
                                  static_cast<std::int64_t>(sizeof(LogitAdjustment)));
  }

  void Layers() {
    Activation(Buffer::kResidual, config_.hidden);
    Activation(Buffer::kBranch, config_.hidden);
    Activation(Buffer::kNormed, config_.hidden);
    Activation(Buffer::kQueryLatent, config_.q_latent);
    Activation(Buffer::kQuery, rank_.heads.count * (config_.nope + kRopeWidth));
    Activation(Buffer::kKeyValue, kLatentWidth + kRopeWidth);
    Activation(Buffer::kAbsorbedQuery, rank_.heads.count * kLatentWidth);
    Activation(Buffer::kLatentOutput, rank_.heads.count * kLatentWidth);
    Activation(Buffer::kAttentionOutput, rank_.heads.count * config_.value);
    Activation(Buffer::kMlpGate, MlpWidth(rank_));
    Activation(Buffer::kMlpUp, MlpWidth(rank_));
    Set(Buffer::kExperts, limits_.tokens_max * config_.experts_per_token * kI32Bytes);
    Set(Buffer::kExpertWeights, limits_.tokens_max * config_.experts_per_token * kF32Bytes);
  }

  // Every activation that an fp8 weight reads has an fp8 copy of its own.
  void Fp8Copies() {
    Fp8(Buffer::kNormedFp8, Buffer::kNormedScales, config_.hidden);
    Fp8(Buffer::kQueryLatentFp8, Buffer::kQueryLatentScales, config_.q_latent);
    Fp8(Buffer::kAttentionOutputFp8, Buffer::kAttentionOutputScales,
        rank_.heads.count * config_.value);
    Fp8(Buffer::kMlpGateFp8, Buffer::kMlpGateScales, MlpWidth(rank_));
  }

  void Indexer() {
    const std::int64_t row_bytes = VisibleLimit(limits_.context_max) * kF32Bytes;
    plan_.score_rows =
        std::clamp(limits_.score_bytes_max / row_bytes, std::int64_t{1}, limits_.tokens_max);
    const std::int64_t heads = config_.index_heads;
    Activation(Buffer::kIndexKey, kIndexHeadWidth);
    Activation(Buffer::kIndexQuery, heads * kIndexHeadWidth);
    Set(Buffer::kIndexHeadWeight, limits_.tokens_max * heads * kF32Bytes);
    Activation(Buffer::kPreparedQuery, heads * kIndexHeadWidth);
    Set(Buffer::kPreparedWeight, limits_.tokens_max * heads * kF32Bytes);
    Set(Buffer::kScores, plan_.score_rows * row_bytes);
    Set(Buffer::kSelectedSlots, limits_.tokens_max * config_.index_topk * kI32Bytes);
    plan_.mask_words = CeilDivide(plan_.scratch.masked_context_max, kMaskWordBits);
    Set(Buffer::kSelectionMask, limits_.tokens_max * plan_.mask_words * kMaskWordBytes);
    Set(Buffer::kSelectedCounts, limits_.tokens_max * kI32Bytes);
  }

  // Room for the rows of all data ranks.
  void Exchange() {
    const std::int64_t rows = rank_.data_ranks * limits_.tokens_max;
    const std::int64_t pairs = rows * config_.experts_per_token;
    Set(Buffer::kExchangeRows, rows * config_.hidden * activation_bytes_);
    Set(Buffer::kExchangeExperts, pairs * kI32Bytes);
    if (limits_.combines_parts) {
      Set(Buffer::kExchangeWeights, pairs * kF32Bytes);
    }
    Set(Buffer::kExpertResults, pairs * config_.hidden * activation_bytes_);
  }

  // What other ranks add to.
  void Parts() {
    const std::int64_t rows = limits_.logit_rows_max;
    Set(Buffer::kBranchPart, limits_.tokens_max * config_.hidden * kPartialBytesMax);
    Set(Buffer::kHeadPart, rows * config_.hidden * kPartialBytesMax);
    Set(Buffer::kLogitsPart, rows * rank_.vocabulary.count * kF32Bytes);
  }

  void Head() {
    const std::int64_t rows = limits_.logit_rows_max;
    Set(Buffer::kHeadResidual, rows * config_.hidden * activation_bytes_);
    Set(Buffer::kHeadNormed, rows * config_.hidden * activation_bytes_);
    Set(Buffer::kLogits, rows * config_.vocabulary * kF32Bytes);
  }

 private:
  void Set(Buffer buffer, std::int64_t bytes) {
    plan_.bytes.at(static_cast<std::size_t>(buffer)) = bytes;
  }
  void Fp8(Buffer values, Buffer scales, std::int64_t width) {
    Set(values, limits_.tokens_max * width);
    Set(scales, limits_.tokens_max * CeilDivide(width, kWeightBlock) * kF32Bytes);
  }
  void Activation(Buffer buffer, std::int64_t width) {
    Set(buffer, limits_.tokens_max * width * activation_bytes_);
  }

  const ModelConfig& config_;
  const RankShape& rank_;
  const StepLimits& limits_;
  std::int64_t activation_bytes_;
  WorkspacePlan& plan_;
};

}  // namespace

ExpertExtents ExpertsOf(const ModelConfig& config) {
  return config.experts == 0 ? ExpertExtents{}
                             : ExpertExtents{.layers = config.layers - config.dense_layers,
                                             .experts = config.experts};
}

std::int64_t AdjustmentTableRows(const StepLimits& limits) {
  return limits.row_adjustments == 0
             ? 0
             : limits.sequences_max + CeilDivide(limits.given_rows_max, limits.row_adjustments);
}

std::int64_t StepWordsMax(const StepLimits& limits) {
  return limits.sequences_max * BlockTableColumns(limits.context_max) +
         (limits.sequences_max * limits.row_adjustments + limits.given_rows_max) *
             kWordsPerAdjustment;
}

std::int64_t WorkspacePlan::total_bytes() const {
  std::int64_t total = 0;
  for (const std::int64_t buffer_bytes : bytes) {
    total += CeilDivide(buffer_bytes, kBufferAlignment) * kBufferAlignment;
  }
  return total;
}

WorkspacePlan PlanWorkspace(const ModelConfig& config, const RankShape& rank,
                            const StepLimits& limits) {
  CheckLimits(limits);
  WorkspacePlan plan{};
  plan.scratch = PlanScratch(config, rank, limits);
  Planner planner(config, rank, limits, plan);
  planner.Batch();
  planner.Layers();
  if (config.quantized) {
    planner.Fp8Copies();
  }
  if (config.has_indexer()) {
    planner.Indexer();
  }
  planner.Head();
  if (rank.ranks > 1) {
    planner.Parts();
  }
  if (rank.data_ranks > 1) {
    planner.Exchange();
  }
  return plan;
}

}  // namespace dsa
