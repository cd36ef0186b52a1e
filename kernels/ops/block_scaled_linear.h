// Linear projection of fp8 activations with fp8 weights, each scaled in blocks as by QuantizeFp8:
//
//   y[t, n] = round(sum over blocks b of x_scales[t, b] * weight_scales[n / 128, b]
//                                        * sum over k in b of x[t, k] * weight[n, k])
//
// CPU: both sums are double, in an order that is the same for any number of rows, so a row's bits
// do not depend on the rows beside it.  CUDA: Hopper's fp8 tensor cores keep about 14 bits of a sum
// inside a block of 128 and add the blocks in float32: relative error 1.25e-4 as measured, 3e-4
// allowed, and 1e-3 is a fault.  The order, and so a row's bits, may follow the number of rows.
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
  AnyMatrix y;                        // [T, N]  f32 or bf16; f64 as in Linear
};
LinearExtents Validate(const BlockScaledLinearParams& params);

}  // namespace dsa
