// Writes the lightning indexer's key of each row into the paged cache, for every token on every
// path. DeepSeek-V3.2-Exp paper, section 2.1; rounding as in the official inference code.
//
// k -> LayerNorm with bias (biased variance) -> round -> RoPE on the first 64 values -> round, and
// for the fp8 format -> Hadamard_128 / sqrt(128) -> round -> e4m3 with one power-of-two scale.
// round is to the type of k.  Hadamard: Sylvester (natural) order.
#pragma once

#include "common/view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/rope.h"

#include <cstdint>

namespace dsa {

struct StoreIndexerKeyParams {
  ConstAnyMatrix k;                      // [T, 128]  f32 or bf16, output of indexer.wk
  Vector<const float> norm_weight;       // [128]
  Vector<const float> norm_bias;         // [128]
  float eps;                             // 1e-6 in every family
  Vector<const std::int32_t> positions;  // [T]
  RopeTable table;
  RopeLayout layout;
  Vector<const std::int64_t> slots;  // [T]  block * 64 + offset, all different
  IndexerCacheView cache;
};
struct StoreIndexerKeyExtents {
  std::int64_t tokens;  // T, may be 0
};
StoreIndexerKeyExtents Validate(const StoreIndexerKeyParams& params);

}  // namespace dsa
