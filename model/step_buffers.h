// The arrays of a step, packed so that all of them go to the device in one copy and all results
// come back in one.  Where an array lies depends on the step's shape alone, in host and in device
// memory alike: the batch builder, the executor and the executors of tests share this layout.
#pragma once

#include "common/view.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/update_block_tables.h"
#include "model/step_shape.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace dsa {

// Host memory, read-only; a matrix without gaps between its rows.
template <typename T>
std::span<const T> SpanOf(const Vector<T>& vector) {
  return {vector.data, static_cast<std::size_t>(vector.size)};
}
template <typename T>
std::span<const T> SpanOf(const Matrix<T>& matrix) {
  return {matrix.data, static_cast<std::size_t>(matrix.rows * matrix.cols)};
}

// Views of what a step needs, in one piece of memory.  What comes last has no fixed length: what
// the two kinds of updates refer to, block ids and adjustments, both in words of 32 bits.
struct StepInputs {
  Vector<std::int64_t> slots;         // [T]  block * 64 + offset of the row's own key
  Vector<SamplingRow> sampling;       // [N]
  Vector<std::int32_t> token_ids;     // [T]
  Vector<std::int32_t> positions;     // [T]
  Vector<std::int32_t> sequences;     // [T]  rows of the block tables
  Vector<std::int32_t> logit_rows;    // [R]  rows of the batch whose logits are computed
  Vector<std::int32_t> sample_rows;   // [N]  in [0, R)
  Vector<TableUpdate> table_updates;  // [U]
  Vector<std::int32_t> live_rows;     // [1]  rows that are not padding
  // [N]  of the rows of adjustments that the executor keeps and `sampling` refers to, in words
  Vector<TableUpdate> adjustment_updates;
  std::int32_t* words;  // not part of InputBytes
};
inline constexpr std::int64_t kWordsPerAdjustment = sizeof(LogitAdjustment) / sizeof(std::int32_t);
static_assert(sizeof(LogitAdjustment) % sizeof(std::int32_t) == 0);
StepInputs InputsAt(std::uint8_t* memory, const StepShape& shape);
std::int64_t InputBytes(const StepShape& shape);  // up to `words`

// Layers that have experts, and the experts of each; of all ranks.
struct ExpertExtents {
  std::int64_t layers = 0;   // L
  std::int64_t experts = 0;  // E
};

// Views of what a step leaves, in one piece of memory.  What is added to comes first: it is zeroed
// before the step.
struct StepOutputs {
  Vector<std::int32_t> row_faults;     // [T]  bits of RowFault, selection
  Vector<std::int32_t> sample_faults;  // [N]  bits of RowFault, logits
  Matrix<std::int32_t> expert_pairs;   // [L, E]  rows, without padding, that chose the expert
  Vector<std::int32_t> tokens;         // [N]
  Vector<float> logprobs;              // [N]  of the sampled token
  Matrix<std::int32_t> top_ids;        // [N, kTopLogprobsMax]  then -1
  Matrix<float> top_logprobs;          // [N, kTopLogprobsMax]
};
StepOutputs OutputsAt(std::uint8_t* memory, const StepShape& shape, const ExpertExtents& experts);
std::int64_t OutputBytes(const StepShape& shape, const ExpertExtents& experts);
std::int64_t ZeroedBytes(const StepShape& shape, const ExpertExtents& experts);  // the first ones

// Host memory, owned by the executor and valid until its next step.
struct StepResult {
  std::span<const std::int32_t> tokens;         // [N]
  std::span<const float> logprobs;              // [N]
  std::span<const std::int32_t> top_ids;        // [N, kTopLogprobsMax]
  std::span<const float> top_logprobs;          // [N, kTopLogprobsMax]
  std::span<const std::int32_t> row_faults;     // [T]
  std::span<const std::int32_t> sample_faults;  // [N]
  std::span<const std::int32_t> expert_pairs;   // [L, E]
  std::span<const float> logits;  // [R, vocabulary] where they were copied, else empty
};
StepResult ResultOf(const StepOutputs& outputs);  // without logits

// Results that an executor without a device writes itself.  Allocates where a step is larger than
// every one before.
class HostStepOutputs final {
 public:
  // Views for a step of this shape: no faults, no pairs, tokens 0, no likely tokens.
  const StepOutputs& Reset(const StepShape& shape, const ExpertExtents& experts = {});
  const StepResult& result() const { return result_; }  // of the last Reset

 private:
  std::vector<std::uint8_t> memory_;
  StepOutputs views_{};
  StepResult result_{};
};

}  // namespace dsa
