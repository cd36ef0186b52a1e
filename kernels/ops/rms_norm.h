// Root-mean-square layer normalisation, optionally fused with the residual addition before it.
//
//   h = x + residual                       (h = x where residual is null)
//   y = h / sqrt(mean(h^2) + eps) * weight
//
// Zhang & Sennrich 2019, eq. 4.  h is float32 and is normalised before it is rounded: only the
// stored residual is rounded to its type.  The mean is taken in float32 over the D columns of a
// row; a row's result does not depend on the other rows.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

struct RmsNormParams {
  ConstAnyMatrix x;            // [T, D]  f32 or bf16
  AnyMatrix residual;          // [T, D]  type of x; read, then overwritten with h; data may be null
  Vector<const float> weight;  // [D]
  AnyMatrix y;                 // [T, D]  type of x; may alias x
  float eps;                   // added to the mean square; > 0
};

// The extents every implementation needs, after `params` was checked against the shapes above.
// D must be a multiple of 8 (one 16-byte load).  CHECK-fails on a violation; T may be 0.
struct RmsNormExtents {
  std::int64_t tokens;  // T
  std::int64_t hidden;  // D
};
RmsNormExtents Validate(const RmsNormParams& params);

}  // namespace dsa
