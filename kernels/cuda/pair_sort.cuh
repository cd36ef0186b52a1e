// The sort of pairs (expert_pairs.h) by expert, by the threads of one block.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/expert_pairs.h"
#include "kernels/cuda/ptx/shared_memory.cuh"

namespace dsa::cuda {

inline constexpr int kSortThreads = 1024;  // of one block; also the most experts
inline constexpr int kSortMeets = 1;       // named barrier of the threads that sort

// The exclusive sum of one value per thread, in the order of threads.  The first kThreads threads
// of the block call it.
template <int kThreads>
__device__ unsigned long long ExclusiveSum(unsigned long long value) {
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kWarps <= kWarpSize);
  __shared__ unsigned long long warp_sums[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const auto inclusive_sum = [&](unsigned long long sum) {
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const unsigned long long lower = __shfl_up_sync(kAllLanes, sum, offset);
      sum += lane >= offset ? lower : 0;
    }
    return sum;
  };
  const unsigned long long inclusive = inclusive_sum(value);
  if (lane == kWarpSize - 1) {
    warp_sums[warp] = inclusive;
  }
  ptx::NamedBarrierSync(kSortMeets, kThreads);
  const unsigned long long own = lane < kWarps ? warp_sums[lane] : 0;
  const unsigned long long before = inclusive_sum(own) - own;
  return __shfl_sync(kAllLanes, before, warp) + inclusive - value;
}

// By the first kThreads threads of one block, of which thread e has expert e.  The order of an
// expert's pairs is open: no result may depend on it.  A rehearsal takes all pairs for the first
// expert's, and reads and writes shared memory alone.
template <int kThreads = kSortThreads>
__device__ void SortPairs(const PairChoice& choice, int tile_tokens, int tiles_max,
                          const SortedPairs& sorted, bool is_rehearsal = false) {
  __shared__ int cursors[kThreads];  // counts, then where an expert's next pair goes
  __shared__ int tiles_used;
  const int thread = static_cast<int>(threadIdx.x);
  const int slots = choice.slots();
  const int pairs = choice.pairs();
  const auto expert_of = [&](int token, int slot) {
    return is_rehearsal ? thread % kWarpSize : choice.ExpertOf(token, slot);
  };
  // The experts of a thread's first pairs, all asked for at once.  Loops over more stay loops:
  // unrolled, with a division each, they are 25 KB of instructions that a decode step meets once a
  // layer, cold.
  constexpr int kHeld = 3;
  int held[kHeld];
  {
    int token = thread / slots;
    int slot = thread % slots;
    const int more_tokens = kThreads / slots;
    const int more_slots = kThreads % slots;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      held[i] = thread + i * kThreads < pairs ? expert_of(token, slot) : -1;
      token += more_tokens;
      slot += more_slots;
      if (slot >= slots) {
        slot -= slots;
        ++token;
      }
    }
  }
  cursors[thread] = 0;
  ptx::NamedBarrierSync(kSortMeets, kThreads);
#pragma unroll
  for (const int expert : held) {
    if (expert >= 0) {
      atomicAdd(&cursors[expert], 1);
    }
  }
#pragma unroll 1
  for (int pair = thread + kHeld * kThreads; pair < pairs; pair += kThreads) {
    const int expert = expert_of(pair / slots, pair % slots);
    if (expert >= 0) {
      atomicAdd(&cursors[expert], 1);
    }
  }
  ptx::NamedBarrierSync(kSortMeets, kThreads);
  const int count = cursors[thread];
  const int tiles = (count + tile_tokens - 1) / tile_tokens;
  const unsigned long long sums = ExclusiveSum<kThreads>(
      static_cast<unsigned long long>(tiles) << 32 | static_cast<unsigned>(count));
  const int first = static_cast<int>(sums & 0xFFFFFFFFU);
  const int first_tile = static_cast<int>(sums >> 32);
  cursors[thread] = first;
#pragma unroll 1
  for (int i = 0; i < (is_rehearsal ? 0 : tiles); ++i) {
    sorted.tiles[first_tile + i] = {.expert = thread,
                                    .first = first + i * tile_tokens,
                                    .count = min(tile_tokens, count - i * tile_tokens)};
  }
  if (thread == kThreads - 1) {
    tiles_used = first_tile + tiles;
    if (!is_rehearsal) {
      *sorted.tiles_used = tiles_used;
    }
  }
  ptx::NamedBarrierSync(kSortMeets, kThreads);
#pragma unroll 1
  for (int i = tiles_used + thread; i < (is_rehearsal ? 0 : tiles_max); i += kThreads) {
    sorted.tiles[i] = {};
  }
  const auto place_pair = [&](int pair, int expert) {
    const int place = expert >= 0 ? atomicAdd(&cursors[expert], 1) : -1;
    if (is_rehearsal) {
      return;
    }
    if (expert >= 0) {
      sorted.tokens[place] = pair / slots;
      sorted.pairs[place] = pair;
    }
    sorted.places[pair] = place;
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (thread + i * kThreads < pairs) {
      place_pair(thread + i * kThreads, held[i]);
    }
  }
#pragma unroll 1
  for (int pair = thread + kHeld * kThreads; pair < pairs; pair += kThreads) {
    place_pair(pair, expert_of(pair / slots, pair % slots));
  }
}

// So many blocks of the launch of experts may go on; each takes one off the word.
__device__ inline void AnnounceTo(unsigned* word, unsigned readers) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(readers) : "memory");
}

// By the first warp of one block, behind its WaitForPredecessors.
__device__ inline void AnnounceRows(const PairPreparation& p) {
  if (p.rows_ready == nullptr) {
    return;
  }
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < p.early_counter_count; i += kWarpSize) {
    p.early_counters[i] = 0;
  }
  __syncwarp();
  if (threadIdx.x == 0) {
    AnnounceTo(p.rows_ready, p.rows_readers);
  }
}
template <int kThreads>
__device__ void PreparePairs(const PairPreparation& p, bool is_rehearsal = false) {
  const int counters = is_rehearsal ? 0 : p.counter_count;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < counters; i += kThreads) {
    p.counters[i] = 0;
  }
  SortPairs<kThreads>(p.choice, p.tile_tokens, p.tiles_max, p.sorted, is_rehearsal);
  if (p.pairs_ready != nullptr && !is_rehearsal) {
    ptx::NamedBarrierSync(kSortMeets, kThreads);
    if (threadIdx.x == 0) {
      AnnounceTo(p.pairs_ready, p.pairs_readers);
    }
  }
}

}  // namespace dsa::cuda
