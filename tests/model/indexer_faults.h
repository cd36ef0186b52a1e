// Faults of the lightning indexer, each a backend that falsifies one op of the one it wraps.  They
// serve the golden checks (planted_faults.h) and the quality gate over the whole server.
#pragma once

#include "kernels/backend.h"
#include "kernels/ops/rope.h"

#include <cstdint>
#include <memory>
#include <set>

namespace dsa::testing {

inline RopeLayout OtherLayout(RopeLayout layout) {
  return layout == RopeLayout::kInterleaved ? RopeLayout::kHalfSplit : RopeLayout::kInterleaved;
}

// Queries are quantized as they are; keys were rotated by the Hadamard matrix.  fp8 caches only.
std::unique_ptr<Backend> WithoutQueryHadamard(Backend& inner);

// As many keys as ever, but drawn uniformly; the same in every run of the same batches.
std::unique_ptr<Backend> WithRandomSelection(Backend& inner);

// Every selected position is replaced by the one a block of 64 before it; the first 64 by 0.
std::unique_ptr<Backend> WithShiftedSelection(Backend& inner);

// Queries and keys of the indexer are rotated in the other RoPE layout.
std::unique_ptr<Backend> WithOtherIndexRope(Backend& inner);

// Indexer keys at these positions of every sequence are stored as zeros.  fp8 caches only.
// `positions` outlives the backend and changes only while no request is live.
std::unique_ptr<Backend> WithZeroedIndexKeys(Backend& inner,
                                             const std::set<std::int32_t>& positions);

}  // namespace dsa::testing
