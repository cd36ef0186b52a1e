#include "model/limits.h"

#include "common/check.h"
#include "kernels/kv_layout.h"
#include "model/step_buffers.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr std::int64_t kI32Bytes = 4;
constexpr std::int64_t kF32Bytes = 4;
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
  DSA_CHECK(limits.adjustments_max >= 0, "StepLimits: adjustments_max={}", limits.adjustments_max);
  DSA_CHECK(limits.masked_until >= 0, "StepLimits: masked_until={}", limits.masked_until);
  DSA_CHECK(limits.score_bytes_max > 0, "StepLimits: score_bytes_max={}", limits.score_bytes_max);
  DSA_CHECK(limits.logits_rows_host >= 0, "StepLimits: logits_rows_host={}",
            limits.logits_rows_host);
}

// The widest input of a projection that may be fp8.
std::int64_t QuantizedWidth(const ModelConfig& config) {
  return std::max({config.hidden, config.q_latent, config.heads * config.value, config.dense_width,
                   config.shared_width});
}

std::int64_t MlpWidth(const ModelConfig& config) {
  return std::max(config.dense_width, config.shared_width);
}

ScratchLimits PlanScratch(const ModelConfig& config, const StepLimits& limits) {
  const std::int64_t widest_output =
      std::max({config.heads * (config.nope + kRopeWidth), kLatentWidth + kRopeWidth,
                config.index_heads * kIndexHeadWidth, config.expert_width});
  return {.tokens_max = limits.tokens_max,
          .context_max = limits.context_max,
          .masked_context_max = std::min(limits.masked_until, limits.context_max),
          .hidden = config.hidden,
          .heads = config.heads,
          .nope = config.nope,
          .value = config.value,
          .index_heads = config.index_heads,
          .index_topk = config.index_topk,
          .experts = config.experts,
          .experts_per_token = config.experts_per_token,
          .expert_width = config.expert_width,
          .linear_width_max = std::max(QuantizedWidth(config), widest_output),
          .logit_rows_max = limits.logit_rows_max,
          .vocabulary = config.vocabulary};
}

// Fills the plan's bytes, buffer by buffer.
class Planner final {
 public:
  Planner(const ModelConfig& config, const StepLimits& limits, WorkspacePlan& plan)
      : config_(config),
        limits_(limits),
        activation_bytes_(SizeOf(config.activation_type)),
        plan_(plan) {}

  void Batch() {
    const StepShape largest{.tokens = limits_.tokens_max,
                            .logit_rows = limits_.logit_rows_max,
                            .samples = limits_.sequences_max,
                            .table_updates = limits_.sequences_max};
    Set(Buffer::kStepInputs, InputBytes(largest) + StepIdsMax(limits_) * kI32Bytes);
    Set(Buffer::kStepOutputs, OutputBytes(largest));
    Set(Buffer::kBlockTables,
        (limits_.table_rows_max + 1) * BlockTableColumns(limits_.context_max) * kI32Bytes);
  }

  void Layers() {
    const std::int64_t quantized = config_.quantized ? QuantizedWidth(config_) : 0;
    Activation(Buffer::kResidual, config_.hidden);
    Activation(Buffer::kBranch, config_.hidden);
    Activation(Buffer::kNormed, config_.hidden);
    Set(Buffer::kQuantized, limits_.tokens_max * quantized);
    Set(Buffer::kQuantizedScales,
        limits_.tokens_max * CeilDivide(quantized, kWeightBlock) * kF32Bytes);
    Activation(Buffer::kQueryLatent, config_.q_latent);
    Activation(Buffer::kQuery, config_.heads * (config_.nope + kRopeWidth));
    Activation(Buffer::kKeyValue, kLatentWidth + kRopeWidth);
    Activation(Buffer::kAbsorbedQuery, config_.heads * kLatentWidth);
    Activation(Buffer::kLatentOutput, config_.heads * kLatentWidth);
    Activation(Buffer::kAttentionOutput, config_.heads * config_.value);
    Activation(Buffer::kMlpGate, MlpWidth(config_));
    Activation(Buffer::kMlpUp, MlpWidth(config_));
    Set(Buffer::kExperts, limits_.tokens_max * config_.experts_per_token * kI32Bytes);
    Set(Buffer::kExpertWeights, limits_.tokens_max * config_.experts_per_token * kF32Bytes);
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
  void Activation(Buffer buffer, std::int64_t width) {
    Set(buffer, limits_.tokens_max * width * activation_bytes_);
  }

  const ModelConfig& config_;
  const StepLimits& limits_;
  std::int64_t activation_bytes_;
  WorkspacePlan& plan_;
};

}  // namespace

std::int64_t StepIdsMax(const StepLimits& limits) {
  return limits.adjustments_max * kIdsPerAdjustment +
         limits.sequences_max * BlockTableColumns(limits.context_max);
}

std::int64_t WorkspacePlan::total_bytes() const {
  std::int64_t total = 0;
  for (const std::int64_t buffer_bytes : bytes) {
    total += CeilDivide(buffer_bytes, kBufferAlignment) * kBufferAlignment;
  }
  return total;
}

WorkspacePlan PlanWorkspace(const ModelConfig& config, const StepLimits& limits) {
  CheckLimits(limits);
  WorkspacePlan plan{};
  plan.scratch = PlanScratch(config, limits);
  Planner planner(config, limits, plan);
  planner.Batch();
  planner.Layers();
  if (config.has_indexer()) {
    planner.Indexer();
  }
  planner.Head();
  return plan;
}

}  // namespace dsa
