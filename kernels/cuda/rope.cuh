// The rotation of one pair, shared by Rope and the cache writers.  kernels/ops/rope.h.
#pragma once

#include "kernels/ops/rope.h"

namespace dsa::cuda {

// The columns of pair i of a head of `width` values.
struct RopePair {
  int first;
  int second;
};
__device__ inline RopePair PairColumns(int i, int width, RopeLayout layout) {
  return layout == RopeLayout::kInterleaved ? RopePair{2 * i, 2 * i + 1}
                                            : RopePair{i, i + width / 2};
}

// (a, b) rotated, in the order of the CPU's operations and without contraction, so that both
// backends round alike.
__device__ inline void Rotate(float cosine, float sine, float& a, float& b) {
  const float rotated_a = __fsub_rn(__fmul_rn(a, cosine), __fmul_rn(b, sine));
  b = __fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine));
  a = rotated_a;
}

// The same by the angle of `position` and pair i.
__device__ inline void Rotate(const RopeTable& table, std::int64_t position, int i, float& a,
                              float& b) {
  Rotate(table.cos.Row(position)[i], table.sin.Row(position)[i], a, b);
}

}  // namespace dsa::cuda
