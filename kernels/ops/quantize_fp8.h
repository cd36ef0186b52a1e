// Quantization of activations to fp8 e4m3 with one scale per row and 128 columns:
//
//   scale[t, b] = Fp8BlockScale(max |x[t, 128 b .. 128 b + 127]|, scale_format)
//   value[t, k] = e4m3(clamp(x[t, k] / scale[t, k / 128], -448, 448))
//
// The last block may be partial.  Division, not multiplication by a reciprocal.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

// An fp8 matrix with memory of its own: a value, not a state of the matrix that it was made from.
struct QuantizedView {
  Matrix<Fp8E4m3> values;  // [T, K]; data null: there is none
  Matrix<float> scales;    // [T, ceil(K / 128)]
  ScaleFormat format;
};

struct QuantizeFp8Params {
  ConstAnyMatrix x;        // [T, K]  f32 or bf16
  Matrix<Fp8E4m3> values;  // [T, K]
  Matrix<float> scales;    // [T, ceil(K / 128)]
  ScaleFormat scale_format;
};

struct QuantizeFp8Extents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t cols;    // K
  std::int64_t blocks;  // ceil(K / 128)
};
QuantizeFp8Extents Validate(const QuantizeFp8Params& params);

}  // namespace dsa
