// Weights that lie one behind the other in memory, so that several products of one activation can
// be read as one.  For backends; who lays weights out: model/weight_layout.h.
//
//   values   | rows of W[0]          | rows of W[1] | rows of W[2]  |    one matrix [N0 + N1 + N2,
//   K] scales   | blocks of W[0]        | of W[1]      | of W[2]       |    128 rows each: only the
//   last
//                                                                        weight may end inside one
#pragma once

#include "kernels/fused/activation.h"
#include "kernels/fused/project.h"

#include <array>
#include <cstddef>
#include <optional>

namespace dsa {

// [N, K] and [M, K] as [N + M, K], where `second` lies behind `first`, values and scales.
std::optional<LinearWeight> Joined(const LinearWeight& first, const LinearWeight& second);

// [T, N] and [T, M] as [T, N + M], where the columns of `second` lie behind those of `first`.
std::optional<AnyMatrix> JoinedColumns(const AnyMatrix& first, const AnyMatrix& second);

// Consecutive projections as one; unused ones between them do not count.
struct JoinedProjection {
  std::array<std::size_t, kProjectionsMax> members;  // of ProjectParams::projections, in order
  std::size_t count;                                 // > 0; 1: joined with none
  LinearWeight weight;                               // [sum of N, K]
  AnyMatrix y;  // [T, sum of N]; data null: each member has an output of its own
};

struct JoinedProjections {
  std::array<JoinedProjection, kProjectionsMax> parts;
  std::size_t count;
};

// The projections of `params` in as few parts as their memory allows.
JoinedProjections Joined(const ProjectParams& params);

}  // namespace dsa
