// What the ops that read the paged caches need to know of a batch, in device memory.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

// Query rows of several sequences.  Row t belongs to sequence `sequences[t]` of this batch (an
// index into block_tables, not a SequenceId) and stands at absolute position `positions[t]`; it
// sees the keys at positions 0 .. positions[t], its own included.
struct PagedRows {
  Vector<const std::int32_t> positions;     // [T]
  Vector<const std::int32_t> sequences;     // [T]  in [0, S)
  Matrix<const std::int32_t> block_tables;  // [S, B]  block of position p: [p / 64]
};

// Bits of a row's fault word.  A faulty row fails its request alone.
enum RowFault : std::int32_t {
  kRowFaultIndexerNan = 1,  // an index score among the visible keys is NaN
  kRowFaultLogits = 2,      // a logit is NaN or infinite
};

}  // namespace dsa
