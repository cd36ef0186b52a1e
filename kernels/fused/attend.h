// Attention of rows that read all visible keys or a selection of them, from queries before RoPE to
// the input of the output projection, in the absorbed form (LatentAttention) and in the expanded
// one (MaskedAttention).
#pragma once

#include "kernels/batch_view.h"
#include "kernels/fused/activation.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/key_selection.h"
#include "kernels/ops/rope.h"

namespace dsa {

// What both forms need.
struct AttendParams {
  AnyTensor3 q;  // [T, H, N + 64]  its last 64 columns are rotated in place
  RopeTable table;
  RopeLayout layout;
  ConstAnyTensor3 w_uk;  // [H, N, 512]
  ConstAnyTensor3 w_uv;  // [H, V, 512]
  // What the absorbed form reads in w_uv's place, where values.data is not null: the same weights
  // before they were de-quantized.
  ScaledHeads w_uv_fp8{};
  LatentCacheView cache;
  PagedRows rows;  // [T]
  KeySelection selection;
  double softmax_scale;
  Activation o;  // [T, H * V]
};

//   q[:, N:] = RoPE(q[:, N:]);  o = W_UV LatentAttention(W_UK^T q[:, :N], q[:, N:])
struct AttendLatentParams {
  AttendParams attend;
  AnyTensor3 q_latent;  // [T, H, 512]  work memory, as o_latent
  AnyTensor3 o_latent;  // [T, H, 512]
  // Project or SelectKeys was given the same as QueriesToAbsorb: q is rotated, and q_latent
  // written.
  bool is_absorbed = false;
};

// What AttendLatent begins with.  It does not depend on what is selected, so SelectKeys can do it,
// or the product that gives q.
//   q[:, N:] = RoPE(q[:, N:]);  q_latent = W_UK^T q[:, :N]
struct QueriesToAbsorb {
  AnyTensor3 q;  // [T, H, N + 64]
  RopeTable table;
  RopeLayout layout;
  ConstAnyTensor3 w_uk;  // [H, N, 512]
  AnyTensor3 q_latent;   // [T, H, 512]
};
// What AttendLatent ends with.
ExpandValueParams ExpandOf(const AttendLatentParams& params);
QueriesToAbsorb QueriesOf(const AttendLatentParams& params);
RopeParams RopeOf(const QueriesToAbsorb& queries, const Vector<const std::int32_t>& positions);
AbsorbQueryParams AbsorbOf(const QueriesToAbsorb& queries);

//   q[:, N:] = RoPE(q[:, N:]);  o = MaskedAttention(q)
struct AttendMaskedParams {
  AttendParams attend;
};

}  // namespace dsa
