// What a backend's scratch is sized from.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

// The largest extents any op of a step may have; what scratch is sized from.
struct ScratchLimits {
  std::int64_t tokens_max;          // rows of a step
  std::int64_t context_max;         // visible keys of a row
  std::int64_t masked_context_max;  // visible keys of a row on the masked path; 0: path unused
  std::int64_t hidden;              // D
  std::int64_t heads;               // attention heads
  std::int64_t nope;                // N, q/k width of a head without RoPE
  std::int64_t value;               // V, value width of a head
  std::int64_t index_heads;         // 0 without DSA
  std::int64_t index_topk;          // 0 without DSA
  std::int64_t experts;             // 0 without MoE
  std::int64_t experts_per_token;
  std::int64_t expert_width;      // I
  std::int64_t linear_width_max;  // the largest K or N of any projection
  std::int64_t logit_rows_max;
  std::int64_t vocabulary;
  DataType expert_sum_type = DataType::kF32;  // kF64: experts leave sums that are not rounded
};

}  // namespace dsa
