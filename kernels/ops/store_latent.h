// Writes the latent and the RoPE key of each row into the paged cache.
//
//   c   = round(RmsNorm(kv[:, :512]) * norm_weight)       stored by the cache's format
//   k_r = round(RoPE(kv[:, 512:], positions))             stored unquantized
//
// round is to the type of kv.  The fp8 format stores c with a power-of-two scale per 128 values
// (Fp8BlockScale), whatever the checkpoint's own scale format.  DeepSeek-V3.2, MLA.forward.
#pragma once

#include "common/view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/rope.h"

#include <cstdint>

namespace dsa {

struct StoreLatentParams {
  ConstAnyMatrix kv;                     // [T, 576]  f32 or bf16, output of kv_a_proj_with_mqa
  Vector<const float> norm_weight;       // [512]
  float eps;                             // > 0
  Vector<const std::int32_t> positions;  // [T]
  RopeTable table;
  RopeLayout layout;
  Vector<const std::int64_t> slots;  // [T]  block * 64 + offset, all different
  LatentCacheView cache;
};

struct StoreLatentExtents {
  std::int64_t tokens;  // T, may be 0
};
StoreLatentExtents Validate(const StoreLatentParams& params);

}  // namespace dsa
