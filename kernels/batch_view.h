// What the ops that read the paged caches need to know of a batch, in device memory.
#pragma once

#include "common/view.h"
#include "common/view_parts.h"

#include <cstdint>

namespace dsa {

// Query rows of several sequences.  Row t belongs to sequence `sequences[t]` of this batch (an
// index into block_tables, not a SequenceId) and stands at absolute position `positions[t]`; it
// sees the keys at positions 0 .. positions[t], its own included.
//
// Rows come in groups of `group`, each of one sequence at consecutive positions: T is a multiple of
// it.  A sequence with drafts has a group of 2 to 4 rows, whose keys are nearly the same.
// `visible_max` and `has_runs` are what the host knows of the rows: they may size a grid or choose
// a kernel, never a result.
struct PagedRows {
  Vector<const std::int32_t> positions;     // [T]
  Vector<const std::int32_t> sequences;     // [T]  in [0, S)
  Matrix<const std::int32_t> block_tables;  // [S, B]  block of position p: [p / 64]
  std::int64_t group = 1;                   // in [1, kRowGroupMax]
  std::int64_t visible_max = 0;             // no row sees more keys; 0: as many as B blocks hold
  bool has_runs = false;  // rows of a prompt: many follow the row before, at the next position
};
inline constexpr std::int64_t kRowGroupMax = 4;

// Rows [first, first + count), whole groups.
inline PagedRows RowsOf(const PagedRows& rows, std::int64_t first, std::int64_t count) {
  PagedRows part = rows;
  part.positions = RowsOf(rows.positions, first, count);
  part.sequences = RowsOf(rows.sequences, first, count);
  return part;
}

// Bits of a row's fault word.  A faulty row fails its request alone.
enum RowFault : std::int32_t {
  kRowFaultIndexerNan = 1,   // an index score among the visible keys is NaN
  kRowFaultLogits = 2,       // a logit is NaN or infinite
  kRowFaultNoCandidate = 4,  // no id may be sampled
};

}  // namespace dsa
