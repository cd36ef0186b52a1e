// The lightning indexer's queries and head weights, ready to meet the cached keys.
// DeepSeek-V3.2-Exp paper, section 2.1; rounding as in the official inference code.
//
// q -> RoPE on the first 64 values of each head -> round, and for the fp8 format -> Hadamard ->
// round -> e4m3 with one power-of-two scale per head.  The scale, H^-1/2 and 128^-1/2 are folded
// into the head weights, in float32.
#pragma once

#include "common/view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/rope.h"

#include <cstdint>

namespace dsa {

struct PrepareIndexerQueryParams {
  ConstAnyTensor3 q;                     // [T, H, 128]  f32 or bf16, output of indexer.wq_b
  Vector<const std::int32_t> positions;  // [T]
  RopeTable table;
  RopeLayout layout;
  KvFormat format;              // of the cache that the queries will meet
  ConstAnyMatrix head_weights;  // [T, H]  f32, output of indexer.weights_proj
  AnyTensor3 queries;           // [T, H, 128]  kFp8E4m3 for fp8, else the type of q
  Matrix<float> weights;        // [T, H]  head_weights * scale * H^-1/2 * 128^-1/2
};
struct PrepareIndexerQueryExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
};
PrepareIndexerQueryExtents Validate(const PrepareIndexerQueryParams& params);

}  // namespace dsa
