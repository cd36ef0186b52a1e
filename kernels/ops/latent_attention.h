// Multi-head latent attention over the paged latent cache (DeepSeek-V2 paper, section 2.1), in its
// absorbed form, the same for the dense and the sparse path (they differ in which keys they read):
//
//   s[h, j]     = softmax_scale * (q_latent[h] . c[j] + q_rope[h] . k_r[j])
//   p[h]        = round(softmax(s[h]))
//   o_latent[h] = round(sum_j p[h, j] c[j])
//
// q_latent comes from AbsorbQuery and o_latent goes to ExpandValue.  round is to the activation
// type; scores and sums are float32.  Keys are visited in ascending position, so a selection that
// covers all visible keys gives the bits of the dense path.  A row's bits depend on its query and
// the keys it attends to, not on the other rows nor on which blocks hold the keys.
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
