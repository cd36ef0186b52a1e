// What fused ops hand to one another: activations with their fp8 copy, and the weights of products.
#pragma once

#include "common/view.h"
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/quantize_fp8.h"

#include <cstdint>

namespace dsa {

class Backend;

// A projection.  fp8: `scales` has a scale for every block of 128 x 128, to be multiplied;
// otherwise scales.data is null.
struct LinearWeight {
  ConstAnyMatrix weight;       // [N, K]  f32, bf16 or fp8
  Matrix<const float> scales;  // [ceil(N / 128), ceil(K / 128)]

  bool quantized() const { return weight.type == DataType::kFp8E4m3; }
};

// An activation and, where a product with an fp8 weight will read it, its fp8 copy.  Who writes
// `x` writes the copy too, so the two never differ.
struct Activation {
  AnyMatrix x;          // [T, K]  f32 or bf16
  QuantizedView fp8{};  // [T, K]; values.data null: no product reads one
};

// Rows [first, first + count) of both.
Activation RowsOf(const Activation& activation, std::int64_t first, std::int64_t count);

// y = x W^T for an fp8 weight, which reads the fp8 copy of x; CHECK-fails where there is none.
BlockScaledLinearParams ScaledProduct(const Activation& x, const LinearWeight& weight,
                                      const AnyMatrix& y);
// y = x W^T by Linear or, with an fp8 weight, by BlockScaledLinear.  Plain ops only: for the
// default bodies of fused ones.
void Multiply(Backend& backend, const Activation& x, const LinearWeight& weight,
              const AnyMatrix& y);
// Makes the fp8 copy, where one is wanted.
void Quantize(Backend& backend, const Activation& activation);

}  // namespace dsa
