// All that the host knows of a step while it queues it: numbers, never a position or an id.  Steps
// of equal shapes queue the same ops with the same parameters, so a recorded one serves them all.
#pragma once

#include "common/attention_path.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace dsa {

struct StepShape {
  std::int64_t tokens = 0;         // T, rows of the batch; padding included
  std::int64_t logit_rows = 0;     // R, rows whose logits are computed
  std::int64_t samples = 0;        // N, rows that are sampled
  std::int64_t table_updates = 0;  // U, changes of the block tables; some may be empty
  // Rows by AttentionPath: all of the first path come first, and so on; they add up to T.
  std::array<std::int64_t, kAttentionPaths> rows{};
  std::int64_t visible_max = 0;  // no row sees more keys; rounded up by RoundUpVisible
  // All rows stand in groups of so many, of one sequence and at consecutive positions; 0: mixed.
  std::int64_t rows_per_sequence = 0;
  // Rows of each data rank in the exchange of experts, T or more; the same on all of them, and 0
  // where there is one.
  std::int64_t exchange_rows = 0;

  friend bool operator==(const StepShape&, const StepShape&) = default;
};

// Steps whose longest rows differ a little share a shape: 64, 128, 256, ... up to the context.
inline constexpr std::int64_t kVisibleMin = 64;

// The largest visible_max of a context.
constexpr std::int64_t VisibleLimit(std::int64_t context_max) {
  return (context_max + kVisibleMin - 1) / kVisibleMin * kVisibleMin;
}
constexpr std::int64_t RoundUpVisible(std::int64_t visible, std::int64_t context_max) {
  std::int64_t rounded = kVisibleMin;
  while (rounded < visible) {
    rounded *= 2;
  }
  return std::min(rounded, VisibleLimit(context_max));
}

// A step of `rows` sequences that decode, all on one path.
constexpr StepShape DecodeShape(std::int64_t rows, AttentionPath path, std::int64_t visible_max) {
  StepShape shape{.tokens = rows,
                  .logit_rows = rows,
                  .samples = rows,
                  .table_updates = rows,
                  .rows = {},
                  .visible_max = visible_max,
                  .rows_per_sequence = 1};
  shape.rows[static_cast<std::size_t>(path)] = rows;
  return shape;
}

// Every shape that decoding steps of these row counts can have.  Rows that see at most `dense_max`
// keys are dense: index_topk, or the context where nothing is selected.
std::vector<StepShape> DecodeShapes(std::span<const std::int64_t> row_buckets,
                                    std::int64_t context_max, std::int64_t dense_max);

}  // namespace dsa
