// How large everything is: from the model and the limits of a step to the bytes of each workspace
// and the scratch that the backend must reserve.  Pure arithmetic, so that start-up can refuse and
// `dsa inspect` can report before any memory is taken.
#pragma once

#include "kernels/backend.h"
#include "model/model_config.h"
#include "model/rank_shape.h"
#include "model/step_buffers.h"
#include "model/step_shape.h"

#include <array>
#include <cstdint>
#include <string_view>

namespace dsa {

// What one step may be at most.  Everything is > 0 unless a comment says otherwise.
struct StepLimits {
  std::int64_t tokens_max;        // rows
  std::int64_t sequences_max;     // sequences
  std::int64_t table_rows_max;    // sequences whose block tables are kept
  std::int64_t context_max;       // positions of a sequence
  std::int64_t logit_rows_max;    // rows whose logits are computed
  std::int64_t given_rows_max;    // sampled rows beside one of each sequence; may be 0
  std::int64_t row_adjustments;   // adjusted ids of a sampled row at most; may be 0
  std::int64_t masked_until;      // positions below may take the masked path; 0: none does
  std::int64_t score_bytes_max;   // of the indexer's scores; at least one row is always held
  std::int64_t logits_rows_host;  // rows of logits that are copied to the host; 0 in a server
  // Of data ranks: what experts give comes back as parts (kernels/comm/collectives.h), where it
  // can.
  bool combines_parts = false;
};

// Columns of the block tables: a sequence of context_max tokens and the block that it grows into.
constexpr std::int64_t BlockTableColumns(std::int64_t context_max) {
  return context_max / kTokensPerBlock + 1;
}
// What a step counts pairs of rows and experts for.
ExpertExtents ExpertsOf(const ModelConfig& config);
// Rows of kAdjustments: one of each sequence, and those that given tokens take.
std::int64_t AdjustmentTableRows(const StepLimits& limits);
// Of StepInputs::words: adjustments and changes of block tables that a step may bring.
std::int64_t StepWordsMax(const StepLimits& limits);

// Every buffer of a step, in device memory.  T, S, R: tokens, sequences and logit rows of
// StepLimits; A: bytes of an activation; P: of Backend::PartialSumType, where there are other
// ranks.  H and the widths of MLPs are the rank's.
enum class Buffer : std::uint8_t {
  kStepInputs,   // model/step_buffers.h, as the batch builder packed it
  kStepOutputs,  // model/step_buffers.h
  kBlockTables,  // i32 [table_rows_max + 1, BlockTableColumns]; kept from step to step
  kAdjustments,  // LogitAdjustment [AdjustmentTableRows, row_adjustments]; kept from step to step
  // The layers.
  kResidual,         // A [T, D]
  kBranch,           // A [T, D]  output of attention or feed-forward, before it is added
  kBranchPart,       // P [T, D]  this rank's part of it
  kNormed,           // A [T, D]
  kQueryLatent,      // A [T, q_latent]
  kQuery,            // A [T, H, N + 64]
  kKeyValue,         // A [T, 576]
  kAbsorbedQuery,    // A [T, H, 512]
  kLatentOutput,     // A [T, H, 512]
  kAttentionOutput,  // A [T, H, V]
  kIndexKey,         // A [T, 128]
  kIndexQuery,       // A [T, IH, 128]
  kIndexHeadWeight,  // f32 [T, IH]  output of weights_proj
  kPreparedQuery,    // A or fp8 [T, IH, 128]
  kPreparedWeight,   // f32 [T, IH]
  kScores,           // f32 [score_rows, VisibleLimit of the context]
  kSelectedSlots,    // i32 [T, K]
  kSelectionMask,    // u64 [T, words of masked_until positions]
  kSelectedCounts,   // i32 [T]
  kMlpGate,          // A [T, widest MLP]
  kMlpUp,            // A [T, widest MLP]
  kExperts,          // i32 [T, experts per token]
  kExpertWeights,    // f32 [T, experts per token]
  // The exchange of experts, where there are S data ranks.
  kExchangeRows,     // A [S * T, D]  rows of all that came here
  kExchangeExperts,  // i32 [S * T, experts per token]
  kExchangeWeights,  // f32, likewise; for parts
  kExpertResults,    // A [S * T * experts per token, D]  what experts here give
  // Copies that fp8 weights read: fp8 in the shape of the values, f32 [T, their blocks of 128].
  kNormedFp8,
  kNormedScales,
  kQueryLatentFp8,
  kQueryLatentScales,
  kAttentionOutputFp8,
  kAttentionOutputScales,
  kMlpGateFp8,
  kMlpGateScales,
  // The head.
  kHeadResidual,  // A [R, D]
  kHeadNormed,    // A [R, D]
  kHeadPart,      // P [R, D]
  kLogitsPart,    // f32 [R, rows of the vocabulary of the rank], where there are other ranks
  kLogits,        // f32 [R, vocabulary]
};
inline constexpr int kBuffers = static_cast<int>(Buffer::kLogits) + 1;

struct WorkspacePlan {
  std::array<std::int64_t, kBuffers> bytes;  // of each Buffer; 0 where the model has no use for it
  std::int64_t score_rows;                   // rows scored at a time; 0 without DSA
  std::int64_t mask_words;                   // of a row of kSelectionMask
  ScratchLimits scratch;

  std::int64_t total_bytes() const;  // each buffer rounded up to kBufferAlignment
};
inline constexpr std::int64_t kBufferAlignment = 256;

// CHECK-fails on limits that are not as described above.
WorkspacePlan PlanWorkspace(const ModelConfig& config, const RankShape& rank,
                            const StepLimits& limits);

}  // namespace dsa
