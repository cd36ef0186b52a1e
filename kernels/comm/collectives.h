// What the ranks of a model do together.
//
//   AllReduce   sum[t, d]   = round(partial of rank 0 + partial of rank 1 + ...)     on every rank
//   AllGather   whole[r, :] = part of rank 0 | part of rank 1 | ...                  on every rank
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

}  // namespace dsa
