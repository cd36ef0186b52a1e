// Multi-head latent attention over the paged latent cache (DeepSeek-V2 paper, section 2.1), in its
// absorbed form, the same for the dense and the sparse path (they differ in which keys they read):
//
//   s[h, j]     = softmax_scale * (q_latent[h] . c[j] + q_rope[h] . k_r[j])
//   p[h]        = round(softmax(s[h]))
//   o_latent[h] = round(sum_j p[h, j] c[j])
//
// q_latent comes from AbsorbQuery and o_latent goes to ExpandValue.  round is to the activation
// type; scores and sums are at least float32.  Keys are read in the order of the selection, which
// is that of positions, so a selection of all visible keys gives the bits of the dense path, and a
// row's bits do not depend on which blocks hold the keys.
//
// CPU: p is rounded as above, and a row's bits do not depend on the other rows.  CUDA: a running
// softmax rounds exp(s - the largest so far) before it is divided by the sum: one rounding of p at
// another place, within 2^-8 of each p in bf16.  Where a row's keys are split follows
// PlanAttention: the batch, or the row's own number of keys alone, and then a row's bits do not
// depend on the other rows here either.
#pragma once

#include "common/view.h"
#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/key_selection.h"

#include <cstdint>

namespace dsa {

struct LatentAttentionParams {
  ConstAnyTensor3 q_latent;  // [T, H, 512]  f32 or bf16
  ConstAnyTensor3 q_rope;    // [T, H, 64]   type of q_latent, rotated
  LatentCacheView cache;
  PagedRows rows;          // [T]
  KeySelection selection;  // its slots; data null: every visible key
  double softmax_scale;
  AnyTensor3 o_latent;  // [T, H, 512]  type of q_latent
};
struct LatentAttentionExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
};
LatentAttentionExtents Validate(const LatentAttentionParams& params);

}  // namespace dsa
