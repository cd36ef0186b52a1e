// What one step computes and where it lies: plain data between the engine, which builds it, and
// the model, which runs it.  The model sees rows of a batch, never a request.
#pragma once

#include "common/attention_path.h"
#include "kernels/ops/sample.h"

#include <cstdint>
#include <span>
#include <vector>

namespace dsa {

// Rows [first_row, first_row + rows) share a path.  Runs are in row order and cover every row.
struct AttentionRun {
  AttentionPath path;
  std::int32_t first_row;
  std::int32_t rows;
};

// Host memory, owned by the batch builder and valid until the next batch is built.
struct ForwardBatch {
  std::span<const std::int32_t> token_ids;     // [T]
  std::span<const std::int32_t> positions;     // [T]
  std::span<const std::int64_t> slots;         // [T]  block * 64 + offset of the row's own key
  std::span<const std::int32_t> sequences;     // [T]  in [0, S)
  std::span<const std::int32_t> block_tables;  // [S, block_table_stride]
  std::int64_t block_table_stride;             // columns of block_tables
  std::span<const AttentionRun> runs;
  std::span<const std::int32_t> logit_rows;  // [R]  rows of the batch whose logits are computed
  // Sampling: entry i draws from the logits of logit_rows[sample_rows[i]].
  std::span<const std::int32_t> sample_rows;     // [N]  in [0, R)
  std::span<const SamplingRow> sampling;         // [N]
  std::span<const LogitAdjustment> adjustments;  // that `sampling` refers to
  bool copy_logits;                              // StepResult::logits is filled; tools only
};

// Host memory, owned by the executor and valid until its next step.
struct StepResult {
  std::span<const std::int32_t> tokens;         // [N]
  std::span<const float> logprobs;              // [N]  of the sampled token
  std::span<const std::int32_t> top_ids;        // [N, kTopLogprobsMax]  then -1
  std::span<const float> top_logprobs;          // [N, kTopLogprobsMax]
  std::span<const std::int32_t> row_faults;     // [T]  bits of RowFault, selection
  std::span<const std::int32_t> sample_faults;  // [N]  bits of RowFault, logits
  std::span<const float> logits;                // [R, vocabulary] where copy_logits, else empty
};

}  // namespace dsa
