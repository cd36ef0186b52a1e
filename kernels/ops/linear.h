// Linear projections:  y = x W^T, accumulated in float32 and rounded once to the type of y.
//
// The order of the sum over K is the same for any number of rows, so that a row's result does not
// depend on the rows beside it.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

// Weights of float32 or bfloat16.  y of float32 next to bfloat16 x serves the gate, the indexer's
// head weights and the logits.
struct LinearParams {
  ConstAnyMatrix x;       // [T, K]  f32 or bf16
  ConstAnyMatrix weight;  // [N, K]  f32 or bf16
  AnyMatrix y;            // [T, N]  f32 or bf16
};

// Weights of fp8 with one scale per 128 x 128 block, activations from QuantizeFp8.  For every block
// of 128 columns the fp8 products are summed in float32, multiplied by x_scale * weight_scale, and
// added to a float32 accumulator.
struct BlockScaledLinearParams {
  Matrix<const Fp8E4m3> x;            // [T, K]
  Matrix<const float> x_scales;       // [T, ceil(K / 128)]
  Matrix<const Fp8E4m3> weight;       // [N, K]
  Matrix<const float> weight_scales;  // [ceil(N / 128), ceil(K / 128)]
  AnyMatrix y;                        // [T, N]  f32 or bf16
};

struct LinearExtents {
  std::int64_t tokens;   // T, may be 0
  std::int64_t inputs;   // K
  std::int64_t outputs;  // N
};
LinearExtents Validate(const LinearParams& params);
LinearExtents Validate(const BlockScaledLinearParams& params);

}  // namespace dsa
