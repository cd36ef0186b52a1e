// What the kernels of MaskedAttention share: runs of rows, the windows they are worked off in, and
// scratch.
//
// A run is consecutive rows of one sequence.  Runs are packed, in order, into windows of as many
// keys as scratch holds; a window's keys are expanded, for some heads at a time, before its rows
// attend to them.  How many windows there are only the device knows, so one kernel of resident
// blocks goes through them, with barriers over the grid (or counters, where heads are of 128).
#pragma once

#include "kernels/ops/masked_attention.h"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

inline constexpr int kMaskBits = 64;  // keys of a word, and of a tile

struct AttentionRun {
  int first_row;
  int rows;
  int keys;        // visible to any of its rows
  int first_key;   // in the window's scratch, a multiple of keys_of_tile
  int first_tile;  // of rows, in the window
};
struct AttentionWindow {
  int first_run;
  int runs;
  int keys;   // of scratch, rounded up per run to whole tiles
  int tiles;  // of rows
};

// Rows of one run that a block of masked_attention_warpgroup.cu attends with.
struct AttentionTile {
  int first_row;
  int rows;
  int first_key;  // of its run
  int key_tiles;  // of its run
  int steps;      // of those, how many some row attends to
};
// What the rows of such a tile do with a tile of keys.
enum class TileMask : std::uint8_t {
  kNone,  // no row attends to any
  kSome,
  kAll,  // every row to all
};

// Counters of masked_attention_warpgroup.cu, which go up from window to window: items of attention
// that were taken, blocks whose latents are there, warps whose masks are, blocks that have
// attended. Behind them, warps that have expanded a tile of keys with a head, per head.
enum MaskedCounter : std::uint8_t { kItemsTaken, kGathered, kMasked, kAttended, kMaskedCounters };

// `T` is the element type of the latents, keys and values.
struct MaskedScratch {
  AttentionRun* runs;        // [T]
  AttentionWindow* windows;  // [T]
  int* window_count;         // [1]
  AttentionTile* tiles;      // [row tiles of a window]
  TileMask* tile_masks;      // [row tiles, keys_max / 128]
  unsigned* counters;        // [kMaskedCounters + H], zero when the plan is made
  int counter_count;
  void* latents;              // [keys, 512]
  void* ropes;                // [keys, 64]
  void* expanded_keys;        // [keys, heads, key_width]   without the RoPE key
  void* expanded_values;      // [keys, heads, value_width]
  std::int64_t keys_max;      // of a window
  std::int64_t rows_of_tile;  // of the kernel that attends
  int keys_of_tile;           // of that kernel; a run's keys are rounded up to whole tiles
  int heads;                  // expanded at a time
  int key_width;              // N rounded up to whole rows of 16 bytes
  int value_width;
};

// The run of a window that holds key `key` of its scratch, or tile `tile` of its rows.
__device__ inline const AttentionRun& RunOfKey(const MaskedScratch& scratch,
                                               const AttentionWindow& window, int key) {
  int run = window.first_run;
  while (run + 1 < window.first_run + window.runs && scratch.runs[run + 1].first_key <= key) {
    ++run;
  }
  return scratch.runs[run];
}
__device__ inline const AttentionRun& RunOfTile(const MaskedScratch& scratch,
                                                const AttentionWindow& window, int tile) {
  int run = window.first_run;
  while (run + 1 < window.first_run + window.runs && scratch.runs[run + 1].first_tile <= tile) {
    ++run;
  }
  return scratch.runs[run];
}

// masked_attention_warpgroup.cu: 128 rows by 128 keys at a time.
inline constexpr int kWarpgroupTile = 128;
// Whether it takes them: bfloat16 over a cache of fp8 or bfloat16, N = V = 128, 16-byte aligned
// rows, heads of w_uk a multiple of 32 of their rows apart and of w_uv of whole rows, a positive
// scale.
bool MaskedWarpgroupTakes(const MaskedAttentionParams& params);
// `scratch` is planned by PlanRunsKernel, on the same stream, with tiles of kWarpgroupTile.
void MaskedWarpgroup(const MaskedAttentionParams& params, const MaskedScratch& scratch,
                     cudaStream_t stream);

}  // namespace dsa::cuda
