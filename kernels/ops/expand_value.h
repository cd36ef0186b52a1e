// The values of absorbed latent attention, from latent width to the width of a head:
//
//   o[h] = round(W_UV[h] o_latent[h])
//
// DeepSeek-V2 paper, section 2.1.2.  round is to the type of o_latent; the sum is float32.
//
// fp8 weights are read as kv_b is stored: codes times the scale of their block.  CUDA: sums over
// the 128 columns of a block are multiplied by its scale; rows must start at multiples of 16 bytes.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

// fp8 matrices of heads with their scales, as ExpandValueParams has them.
struct ScaledHeads {
  ConstAnyTensor3 values;
  Matrix<const float> scales;
};

struct ExpandValueParams {
  ConstAnyTensor3 o_latent;  // [T, H, L]  f32 or bf16
  // [H, V, L] as rows = H, heads = V, cols = L; f32, bf16 or, beside bf16 latents, fp8: then heads
  // stand one behind the other, and V is a multiple of 128.
  ConstAnyTensor3 w_uv;
  AnyTensor3 o;  // [T, H, V]  type of o_latent
  // [H * V / 128, L / 128]  of fp8, contiguous, row h V / 128 + i for values 128 i and on of head
  // h; else data is null.
  Matrix<const float> w_uv_scales{};
};
struct ExpandValueExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
  std::int64_t value;   // V
  std::int64_t latent;  // L = 512
};
ExpandValueExtents Validate(const ExpandValueParams& params);

}  // namespace dsa
