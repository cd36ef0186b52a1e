// Latents of a chunk's sequences as rows of halves: 576 values, 1,152 bytes a key, latents times
// their scales and the RoPE key.  Converted once, so that many rows of one sequence gather their
// keys without arithmetic.
//
// Whole blocks of the cache are converted, as many sequences as scratch holds, and only those that
// have enough rows for it; a row of any other sequence finds `first_blocks` of its sequence
// negative.  What the rows hold is exact from 2^-14 up to 65,520 (latent_records.cuh).
#pragma once

#include "kernels/batch_view.h"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/kv_layout.h"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

inline constexpr int kLatentRowBytes = (kLatentValues + kLatentRopeValues) * 2;
inline constexpr int kConvertedSequencesMax = 1024;             // of a batch
inline constexpr std::int64_t kConvertedCacheBlocks = 1 << 20;  // that the map has entries for

struct LatentRows {
  std::uint8_t* rows;  // [blocks_max, 64]  of kLatentRowBytes
  int* places;         // [kConvertedCacheBlocks]  of a block of the cache: its place in `rows`
  int* sources;        // [blocks_max]  the reverse
  int* first_blocks;   // [kConvertedSequencesMax]  negative: the sequence is not converted
  int* block_count;    // [1]  converted
  int blocks_max;
};

// `blocks_max` of 0 takes nothing.
LatentRows TakeLatentRows(ScratchArena& arena, std::int64_t blocks_max);

// Plans and converts on `stream`.  The batch has at most kConvertedSequencesMax sequences and the
// cache, of fp8 records, at most kConvertedCacheBlocks blocks.
void ConvertLatents(const PagedRows& rows, const std::uint8_t* cache, const LatentRows& latents,
                    cudaStream_t stream);

}  // namespace dsa::cuda
