// Latent attention in its expanded form, for prefill at short positions, where it costs less:
// the cached latents are expanded to keys and values of every head (kv_b is de-quantized, latents
// are read as cached and not quantized again), then ordinary attention runs under a mask that
// admits the selection:
//
//   k[h, j] = [W_UK[h] c[j] | k_r[j]]     v[h, j] = W_UV[h] c[j]            rounded
//   o[h]    = round(sum_j round(softmax(softmax_scale * q[h] . k[h, j])) v[h, j])
//
// Agrees with the absorbed form up to rounding.  CPU: a row's bits depend on its query and the keys
// it attends to, not on the other rows.  CUDA: p is rounded as in LatentAttention, and keys are
// visited in tiles that other rows may share: a row's bits may depend on them.  Rows of one
// sequence should stand next to each other: their keys are expanded once per run of consecutive
// rows with equal `sequences`.
#pragma once

#include "common/view.h"
#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/key_selection.h"

#include <cstdint>

namespace dsa {

struct MaskedAttentionParams {
  ConstAnyTensor3 q;     // [T, H, N + 64]  f32 or bf16, its last 64 columns rotated
  ConstAnyTensor3 w_uk;  // [H, N, 512]  as in AbsorbQuery
  ConstAnyTensor3 w_uv;  // [H, V, 512]  as in ExpandValue
  LatentCacheView cache;
  PagedRows rows;          // [T]
  KeySelection selection;  // its mask; data null: every visible key
  double softmax_scale;
  AnyTensor3 o;  // [T, H, V]  type of q
};
struct MaskedAttentionExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
  std::int64_t nope;    // N
  std::int64_t value;   // V
};
MaskedAttentionExtents Validate(const MaskedAttentionParams& params);

}  // namespace dsa
