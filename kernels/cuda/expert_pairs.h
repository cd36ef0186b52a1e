// The pairs (token, slot) of a mixture of experts: what is sorted on the device, and where to.
//
// Slots are the gate's K choices and, where the shared expert is computed with the routed ones, one
// more: it has the id behind theirs, and every token goes to it.  An id outside [first_expert,
// first_expert + E) belongs to another rank: it is no pair here.
#pragma once

#include "common/view.h"
#include "kernels/cuda/scratch_arena.h"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

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
  // Where the launch of experts waits for all of this alone, not for the end of the launch that
  // does it: a word, zero between launches, that then counts its readers.  Null: it waits for the
  // end.
  unsigned* pairs_ready;
  unsigned pairs_readers;
};

}  // namespace dsa::cuda
