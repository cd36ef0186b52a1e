// The pairs (token, slot) of a mixture of experts, sorted by expert on the device.
//
// Slots are the gate's K choices and, where the shared expert is computed with the routed ones, one
// more: it has the id behind theirs, and every token goes to it.  An id outside [first_expert,
// first_expert + E) belongs to another rank: it is no pair here.
#pragma once

#include "common/view.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/cuda/scratch_arena.h"

#include <cstdint>

namespace dsa::cuda {

inline constexpr int kSortThreads = 1024;  // of one block; also the most experts
inline constexpr int kSortMeets = 1;       // named barrier of the threads that sort

// Some pairs of one expert.
struct PairTile {
  int expert;
  int first;  // in the sorted pairs
  int count;  // 0: no tile
};

struct PairChoice {
  Matrix<const std::int32_t> experts;  // [T, K]
  std::int32_t first_expert;
  int expert_count;  // E, without the shared one
  bool with_shared;

  __host__ __device__ int slots() const {
    return static_cast<int>(experts.cols) + (with_shared ? 1 : 0);
  }
  __host__ __device__ int pairs() const { return static_cast<int>(experts.rows) * slots(); }
  // The expert here that a slot of a token goes to, or -1.
  __device__ int ExpertOf(int token, int slot) const {
    if (slot == static_cast<int>(experts.cols)) {
      return expert_count;
    }
    const std::int32_t id = experts.Row(token)[slot] - first_expert;
    return id >= 0 && id < expert_count ? id : -1;
  }
};

// What the sort writes.
struct SortedPairs {
  PairTile* tiles;       // the used ones, those of an expert one after the other, then empty ones
  int* tiles_used;       // one value
  std::int32_t* tokens;  // [pairs]
  std::int32_t* pairs;   // [pairs]  token * slots + slot
  std::int32_t* places;  // [pairs]  where a pair is among the sorted; -1: it is not here
};
inline SortedPairs TakeSortedPairs(ScratchArena& arena, std::int64_t tiles, std::int64_t pairs) {
  return {.tiles = arena.Take<PairTile>(tiles),
          .tiles_used = arena.Take<int>(1),
          .tokens = arena.Take<std::int32_t>(pairs),
          .pairs = arena.Take<std::int32_t>(pairs),
          .places = arena.Take<std::int32_t>(pairs)};
}

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
// expert's pairs is open: no result may depend on it.
template <int kThreads = kSortThreads>
__device__ void SortPairs(const PairChoice& choice, int tile_tokens, int tiles_max,
                          const SortedPairs& sorted) {
  __shared__ int cursors[kThreads];  // counts, then where an expert's next pair goes
  __shared__ int tiles_used;
  const int thread = static_cast<int>(threadIdx.x);
  const int slots = choice.slots();
  cursors[thread] = 0;
  ptx::NamedBarrierSync(kSortMeets, kThreads);
  for (int pair = thread; pair < choice.pairs(); pair += kThreads) {
    const int expert = choice.ExpertOf(pair / slots, pair % slots);
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
  for (int i = 0; i < tiles; ++i) {
    sorted.tiles[first_tile + i] = {.expert = thread,
                                    .first = first + i * tile_tokens,
                                    .count = min(tile_tokens, count - i * tile_tokens)};
  }
  if (thread == kThreads - 1) {
    tiles_used = first_tile + tiles;
    *sorted.tiles_used = tiles_used;
  }
  ptx::NamedBarrierSync(kSortMeets, kThreads);
  for (int i = tiles_used + thread; i < tiles_max; i += kThreads) {
    sorted.tiles[i] = {};
  }
  for (int pair = thread; pair < choice.pairs(); pair += kThreads) {
    const int expert = choice.ExpertOf(pair / slots, pair % slots);
    const int place = expert >= 0 ? atomicAdd(&cursors[expert], 1) : -1;
    if (expert >= 0) {
      sorted.tokens[place] = pair / slots;
      sorted.pairs[place] = pair;
    }
    sorted.places[pair] = place;
  }
}

// What a launch of experts finds done: its pairs sorted, its counters zero.
struct PairPreparation {
  PairChoice choice;
  int tile_tokens;
  int tiles_max;
  SortedPairs sorted;
  int* counters;
  int counter_count;
  // Where the launch of experts begins with what needs no choice: zeroed once the kernels ahead
  // have ended, and then its readers are told.  Null: nobody reads rows before the pairs are
  // sorted.
  int* early_counters;
  int early_counter_count;
  unsigned* rows_ready;
  unsigned rows_readers;
};
// By the first warp of one block, behind its WaitForPredecessors.
__device__ inline void AnnounceRows(const PairPreparation& p) {
  if (p.rows_ready == nullptr) {
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < p.early_counter_count; i += kWarpSize) {
    p.early_counters[i] = 0;
  }
  __syncwarp();
  if (threadIdx.x == 0) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p.rows_ready), "r"(p.rows_readers)
                 : "memory");
  }
}
template <int kThreads>
__device__ void PreparePairs(const PairPreparation& p) {
  for (int i = static_cast<int>(threadIdx.x); i < p.counter_count; i += kThreads) {
    p.counters[i] = 0;
  }
  SortPairs<kThreads>(p.choice, p.tile_tokens, p.tiles_max, p.sorted);
}

}  // namespace dsa::cuda
