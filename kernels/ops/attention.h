// Multi-head latent attention over the paged latent cache (DeepSeek-V2 paper, section 2.1).
//
// Absorbed form, the same for the dense and the sparse path (they differ in which keys they read):
//
//   q_latent[h] = W_UK[h]^T q_nope[h]                                        AbsorbQuery
//   s[h, j]     = softmax_scale * (q_latent[h] . c[j] + q_rope[h] . k_r[j])
//   p[h]        = round(softmax(s[h]))
//   o_latent[h] = round(sum_j p[h, j] c[j])                                  LatentAttention
//   o[h]        = round(W_UV[h] o_latent[h])                                 ExpandValue
//
// round is to the activation type; scores and sums are float32.  Keys are visited in ascending
// position, so a selection that covers all visible keys gives the bits of the dense path.
#pragma once

#include "common/view.h"
#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"

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
  std::int64_t latent;  // L
};
AbsorbQueryExtents Validate(const AbsorbQueryParams& params);

struct ExpandValueParams {
  ConstAnyTensor3 o_latent;  // [T, H, L]  f32 or bf16
  ConstAnyTensor3 w_uv;      // [H, V, L] as rows = H, heads = V, cols = L; f32 or bf16
  AnyTensor3 o;              // [T, H, V]  type of o_latent
};
struct ExpandValueExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
  std::int64_t value;   // V
  std::int64_t latent;  // L
};
ExpandValueExtents Validate(const ExpandValueParams& params);

// The keys a row attends to.
struct KeySelection {
  Matrix<const std::int32_t> positions;  // [T, K] ascending; data null: every visible key
  Vector<const std::int32_t> counts;     // [T]  in [1, K]
};

struct LatentAttentionParams {
  ConstAnyTensor3 q_latent;  // [T, H, 512]  f32 or bf16
  ConstAnyTensor3 q_rope;    // [T, H, 64]   type of q_latent, rotated
  LatentCacheView cache;
  PagedRows rows;  // [T]
  KeySelection selection;
  float softmax_scale;
  AnyTensor3 o_latent;  // [T, H, 512]  type of q_latent
};
struct LatentAttentionExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
};
LatentAttentionExtents Validate(const LatentAttentionParams& params);

// The same attention in its expanded form, for prefill at short positions, where it costs less:
// the cached latents are expanded to keys and values of every head (kv_b is de-quantized, latents
// are read as cached and not quantized again), then ordinary attention runs under a mask that
// admits the selection:
//
//   k[h, j] = [W_UK[h] c[j] | k_r[j]]     v[h, j] = W_UV[h] c[j]            rounded
//   o[h]    = round(sum_j round(softmax(softmax_scale * q[h] . k[h, j])) v[h, j])
//
// Agrees with the absorbed form up to rounding.
struct MaskedAttentionParams {
  ConstAnyTensor3 q;     // [T, H, N + 64]  f32 or bf16, its last 64 columns rotated
  ConstAnyTensor3 w_uk;  // [H, N, 512]  as in AbsorbQuery
  ConstAnyTensor3 w_uv;  // [H, V, 512]  as in ExpandValue
  LatentCacheView cache;
  PagedRows rows;  // [T]
  KeySelection selection;
  float softmax_scale;
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
