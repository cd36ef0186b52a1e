// Several projections of one activation:  y[i] = x W[i]^T.
//
// Weights that lie one behind the other in memory can be read as one.  Where a projection gives
// attention's queries, they can be absorbed as well.
#pragma once

#include "kernels/fused/activation.h"
#include "kernels/fused/attend.h"

#include <array>
#include <cstdint>
#include <optional>

namespace dsa {

inline constexpr std::size_t kProjectionsMax = 4;

struct Projection {
  LinearWeight weight{};  // [N, K]; weight.data null: unused
  AnyMatrix y{};          // [T, N]  f32 or bf16
};
// Of AttendLatent, for the same rows: done as well.
struct ProjectedQueries {
  QueriesToAbsorb queries;               // q is the output of the first projection
  Vector<const std::int32_t> positions;  // [T]
};
struct ProjectParams {
  Activation x;  // [T, K]
  std::array<Projection, kProjectionsMax> projections;
  std::optional<ProjectedQueries> absorbed = std::nullopt;
};

}  // namespace dsa
