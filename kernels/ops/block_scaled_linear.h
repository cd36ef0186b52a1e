// QuantizeFp8:
//
//   y[t, n] = round(sum over blocks b of x_scales[t, b] * weight_scales[n / 128, b]
//                                        * sum over k in b of x[t, k] * weight[n, k])
//
// Both sums are at least float32.  Their order is the same for any number of rows, so that a row's
// result does not depend on the rows beside it.
#pragma once

#include "common/view.h"
#include "kernels/ops/linear.h"

#include <cstdint>

namespace dsa {

struct BlockScaledLinearParams {
  Matrix<const Fp8E4m3> x;            // [T, K]
  Matrix<const float> x_scales;       // [T, ceil(K / 128)]
  Matrix<const Fp8E4m3> weight;       // [N, K]
  Matrix<const float> weight_scales;  // [ceil(N / 128), ceil(K / 128)]
  AnyMatrix y;                        // [T, N]  f32 or bf16
};
LinearExtents Validate(const BlockScaledLinearParams& params);

}  // namespace dsa
