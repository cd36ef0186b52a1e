// The step from one half of a layer to the next:
//
//   residual = residual + x          (x alone where residual is null)
//   y        = RmsNorm(residual)     before it is rounded, as in kernels/ops/rms_norm.h
//
// x is this rank's part of the branch: with several ranks, the one place where their sums are
// added.
#pragma once

#include "kernels/fused/activation.h"

namespace dsa {

struct AddNormParams {
  ConstAnyMatrix x;            // [T, D]
  AnyMatrix residual;          // [T, D]  read, then overwritten with the sum; data may be null
  Vector<const float> weight;  // [D]
  float eps;
  Activation y;  // [T, D]
};

}  // namespace dsa
