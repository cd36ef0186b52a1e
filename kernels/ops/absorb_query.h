// The query of absorbed latent attention, of latent width:
//
//   q_latent[h] = round(W_UK[h]^T q_nope[h])
//
// DeepSeek-V2 paper, section 2.1.2.  round is to the type of q_nope; the sum is float32.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

struct AbsorbQueryParams {
  ConstAnyTensor3 q_nope;  // [T, H, N]  f32 or bf16
  ConstAnyTensor3 w_uk;    // [H, N, L] as rows = H, heads = N, cols = L; f32 or bf16
  AnyTensor3 q_latent;     // [T, H, L]  type of q_nope
};
struct AbsorbQueryExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
  std::int64_t nope;    // N
  std::int64_t latent;  // L = 512
};
AbsorbQueryExtents Validate(const AbsorbQueryParams& params);

}  // namespace dsa
