// Several projections of one activation:  y[i] = x W[i]^T.
//
// Weights that lie one behind the other in memory can be read as one.
#pragma once

#include "kernels/fused/activation.h"

#include <array>

namespace dsa {

inline constexpr std::size_t kProjectionsMax = 4;

struct Projection {
  LinearWeight weight{};  // [N, K]; weight.data null: unused
  AnyMatrix y{};          // [T, N]  f32 or bf16
};
struct ProjectParams {
  Activation x;  // [T, K]
  std::array<Projection, kProjectionsMax> projections;
};

}  // namespace dsa
