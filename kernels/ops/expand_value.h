// The values of absorbed latent attention, from latent width to the width of a head:
//
//   o[h] = round(W_UV[h] o_latent[h])
//
// DeepSeek-V2 paper, section 2.1.2.  round is to the type of o_latent; the sum is float32.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

struct ExpandValueParams {
  ConstAnyTensor3 o_latent;  // [T, H, L]  f32 or bf16
  ConstAnyTensor3 w_uv;      // [H, V, L] as rows = H, heads = V, cols = L; f32 or bf16
  AnyTensor3 o;              // [T, H, V]  type of o_latent
};
struct ExpandValueExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
  std::int64_t value;   // V
  std::int64_t latent;  // L = 512
};
ExpandValueExtents Validate(const ExpandValueParams& params);

}  // namespace dsa
