// The step from one half of a layer to the next:
//
//   residual = residual + x          (x alone where residual is null)
//   y        = RmsNorm(residual)     before it is rounded, as in kernels/ops/rms_norm.h
//
// With several ranks, x is the sum of their parts: the one place where those are added.
#pragma once

#include "kernels/fused/activation.h"

namespace dsa {

struct AddNormParams {
  AnyMatrix x;                 // [T, D]  written where `partial` is given, else only read
  AnyMatrix residual;          // [T, D]  read, then overwritten with the sum; data may be null
  Vector<const float> weight;  // [D]
  float eps;
  Activation y;  // [T, D]
  // x = AllReduce(partial) first; data null: x is whole.
  ConstAnyMatrix partial{};  // [T, D]  Backend::PartialSumType
};

}  // namespace dsa
