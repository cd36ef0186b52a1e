// What the ranks of a model do together.
//
//   AllReduce   sum[t, d]   = round(partial of rank 0 + partial of rank 1 + ...)     on every rank
//   AllGather   whole[r, :] = part of rank 0 | part of rank 1 | ...                  on every rank
//   Dispatch    rows go to the ranks that own an expert of theirs
//   Combine     y[t] = round(sum_k weights[t, k] * contribution[t, k] + shared[t]), on the rank of
//               the row
//
// Every rank calls the same operators in the same order with the same extents; a call returns, or
// on a device runs, once all ranks have made it.  Partial sums cross ranks as they are and are
// added in the order of ranks, then rounded once: to float32 and then to the type of `sum`, as a
// product rounds.  So all ranks get the same bits, and equal inputs always give equal bits.
//
// They are ops of a Backend like any other, queued in order and kept by Record.  Who makes the
// backends of a group joins them: kernels/comm/thread_group.h for the CPU.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

struct AllReduceParams {
  ConstAnyMatrix partial;  // [T, D]  Backend::PartialSumType; what this rank adds
  AnyMatrix sum;           // [T, D]  f32 or bf16; shares no memory with any rank's `partial`
};
struct AllReduceExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t hidden;  // D
};
AllReduceExtents Validate(const AllReduceParams& params);

// Ranks may have different numbers of columns, or none; together they have those of `whole`.
struct AllGatherParams {
  ConstAnyMatrix part;  // [R, V of this rank]  f32 or bf16
  AnyMatrix whole;      // [R, V]  type of part; shares no memory with any rank's `part`
};
struct AllGatherExtents {
  std::int64_t rows;  // R, may be 0
  std::int64_t cols;  // V
};
AllGatherExtents Validate(const AllGatherParams& params);

// The expert exchange of ranks that have rows of their own and each some of the experts, whole:
//
//   rows of rank s ── Dispatch ──► RoutedExperts of every rank, which leaves contributions
//   rows of rank s ◄── Combine ──
//
// Ranks may have the same rows: `copies` of them, next to each other, of which the first sends and
// all receive; then s counts those groups, S of them.  Row t of s is row s * T + t everywhere, so
// that the workspace has room for all rows on one rank.  The rank of a row adds what experts give
// it as one rank with all of them does: each contribution rounded by the expert, added in float32
// in the order of the gate, the shared expert's output last, one rounding.  So a row has the bits
// of one rank.  Its weights stay with it.
struct ExpertRange {
  std::int64_t first;  // of this rank: experts [first, first + count); no two ranks' overlap
  std::int64_t count;  // may be 0
};

// T is the same on all ranks.  A rank with fewer rows has padding behind them, which goes nowhere:
// ids of -1, or all rows from the number in device memory on, whatever their ids are.
struct DispatchParams {
  ConstAnyMatrix x;                        // [T, D]  f32 or bf16
  Matrix<const std::int32_t> experts;      // [T, K]  -1: none
  Vector<const std::int32_t> live_rows{};  // [1]  in [0, T]; data may be null: all
  ExpertRange here;
  std::int64_t copies = 1;           // the same on all ranks; divides their number
  AnyMatrix rows;                    // [S * T, D]  rows without an expert here: kept
  Matrix<std::int32_t> row_experts;  // [S * T, K]  ids of experts here, -1 for all others
  // For parts of Combine: the weights go along.  On CUDA; data null: they stay.
  Matrix<const float> weights{};  // [T, K]
  Matrix<float> row_weights{};    // [S * T, K]
};
struct DispatchExtents {
  std::int64_t tokens;             // T, may be 0
  std::int64_t hidden;             // D
  std::int64_t experts_per_token;  // K
};
DispatchExtents Validate(const DispatchParams& params);

// Every id of `experts` that is not -1, of a row that is not padding, is in some rank's range.
// Belongs to the Dispatch before it.
struct CombineParams {
  ConstAnyMatrix contributions;            // [S * T * K, D]  of the rows that came here; type of y
  Matrix<const std::int32_t> row_experts;  // [S * T, K]  as Dispatch left them
  Matrix<const std::int32_t> experts;      // [T, K]  as in Dispatch, as are the next ones
  Vector<const std::int32_t> live_rows{};
  Matrix<const float> weights;  // [T, K]
  ExpertRange here;
  std::int64_t copies = 1;
  ConstAnyMatrix shared;  // [T, D]  type of y; data may be null
  AnyMatrix y;            // [T, D]  f32 or bf16; may alias shared
  // On CUDA, in place of contributions: what RoutedExperts leaves of the rows that came here, not
  // rounded, which fewer bytes bring back.  They are added in the order of ranks, the shared
  // expert's output last, so a row has not the bits of one rank.  Data null: contributions.
  ConstAnyMatrix parts{};  // [S * T, D]  f32
};
DispatchExtents Validate(const CombineParams& params);

// Whether Dispatch brings weights of such rows, and Combine parts: few rows, which go one way.
bool CanCombineParts(const DispatchExtents& extents);

}  // namespace dsa
