// Scratch of the attention and indexer ops, one per thread.  Part of CpuScratch.
#pragma once

#include "kernels/cpu/scratch.h"

#include <cstdint>

namespace dsa {

inline constexpr std::int64_t kAttentionHeads = 16;  // heads of a row that share de-quantized keys
inline constexpr std::int64_t kAttentionKeys = 256;  // de-quantized at a time; a multiple of the
                                                     // chunk of a weighted sum
inline constexpr std::int64_t kIndexerRows = 16;     // rows that share a de-quantized block of keys

AttentionScratch MakeAttentionScratch(const ScratchLimits& limits, ScratchMaker& maker);

}  // namespace dsa
