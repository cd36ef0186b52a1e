// What the kernels of MaskedAttention share: runs of rows, the windows they are worked off in, and
// scratch.
//
// A run is consecutive rows of one sequence.  Runs are packed, in order, into windows of as many
// keys as scratch holds; a window's keys are expanded, for some heads at a time, before its rows
// attend to them.  How many windows there are only the device knows, so one kernel of resident
// blocks goes through them, with barriers over the grid.
#pragma once

#include "kernels/ops/masked_attention.h"

#include <cstdint>

#include <cuda_bf16.h>

namespace dsa::cuda {

inline constexpr int kMaskBits = 64;  // keys of a word, and of a tile

struct AttentionRun {
  int first_row;
  int rows;
  int keys;        // visible to any of its rows
  int first_key;   // in the window's scratch, a multiple of 64
  int first_tile;  // of rows, in the window
};
struct AttentionWindow {
  int first_run;
  int runs;
  int keys;   // of scratch, rounded up per run to whole tiles
  int tiles;  // of rows
};

// `T` is the element type of the latents, keys and values.
struct MaskedScratch {
  AttentionRun* runs;         // [T]
  AttentionWindow* windows;   // [T]
  int* window_count;          // [1]
  void* latents;              // [keys, 512]
  void* ropes;                // [keys, 64]
  void* expanded_keys;        // [keys, heads, key_width]   without the RoPE key
  void* expanded_values;      // [keys, heads, value_width]
  std::int64_t keys_max;      // of a window
  std::int64_t rows_of_tile;  // of the kernel that attends
  int heads;                  // expanded at a time
  int key_width;              // N rounded up to whole rows of 16 bytes
  int value_width;
};

}  // namespace dsa::cuda
