// Attention of rows that read all visible keys or a selection of them, from queries before RoPE to
// the input of the output projection, in the absorbed form (LatentAttention) and in the expanded
// one (MaskedAttention).
#pragma once

#include "kernels/batch_view.h"
#include "kernels/fused/activation.h"
#include "kernels/kv_layout.h"
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
};

//   q[:, N:] = RoPE(q[:, N:]);  o = MaskedAttention(q)
struct AttendMaskedParams {
  AttendParams attend;
};

}  // namespace dsa
