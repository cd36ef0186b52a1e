// What the warps of masked_attention_warpgroup.cu share: shared memory, barriers, the order of the
// work.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/masked_attention.h"
#include "kernels/cuda/ptx/copy_box.cuh"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/cuda/ptx/wgmma_bf16.cuh"
#include "kernels/kv_layout.h"

#include <cstdint>

#include <cooperative_groups.h>
#include <cuda.h>

namespace dsa::cuda::warpgroup {

inline constexpr int kTile = kWarpgroupTile;  // rows, keys, and values of a key or value
inline constexpr int kBox = 64;               // columns of a box, 128 bytes
inline constexpr int kBoxBytes = kTile * kBox * 2;
inline constexpr int kGroupThreads = 128;
inline constexpr int kConsumerGroups = 2;  // of 64 rows each
inline constexpr int kConsumerThreads = kConsumerGroups * kGroupThreads;
inline constexpr int kConsumerWarps = kConsumerThreads / kWarpSize;
inline constexpr int kThreads = kConsumerThreads + kGroupThreads;
// 65,536 of a multiprocessor: 2 x 232 + 40 per lane of a group.
inline constexpr int kConsumerRegisters = 232;
inline constexpr int kProducerRegisters = 40;

inline constexpr int kKeyBoxes = (kTile + kLatentRopeValues) / kBox;
inline constexpr int kValueBoxes = kTile / kBox;
inline constexpr int kStages = 2;        // of keys, and of values
inline constexpr int kExpandStages = 4;  // latents, and weights of keys and of values
inline constexpr int kExpandBoxes = 3;
inline constexpr int kExpandSteps = kLatentValues / kBox;
static_assert(kExpandSteps % (2 * kExpandStages) == 0, "an item leaves the ring as it found it");

__device__ inline int Lane() {
  return static_cast<int>(threadIdx.x) % kWarpSize;
}

// Latents, keys and values of a window; and what they are made from.
struct Maps {
  CUtensorMap q;        // [T, H, 192]
  CUtensorMap w_uk;     // [rows / 32, 4, 4, 2, 512]  see MapOfKeyWeight
  CUtensorMap w_uv;     // [rows, 512]
  CUtensorMap latents;  // [keys, 512]
  CUtensorMap ropes;    // [keys, 64]
  CUtensorMap keys;     // [heads * keys, 128]
  CUtensorMap values;   // [heads * keys, 128]
};

// Addresses in shared memory.  Expansion and attention lie over each other.
struct Ring {
  unsigned base;
  __device__ explicit Ring(const void* shared)
      : base((ptx::SharedAddress(shared) + kAlignment - 1) / kAlignment * kAlignment) {}

  static constexpr int kAlignment = 1024;  // of swizzled tiles
  static constexpr int kKeys = kKeyBoxes * kBoxBytes;
  static constexpr int kValues = kKeys + kStages * kKeyBoxes * kBoxBytes;
  static constexpr int kControl = kValues + kStages * kValueBoxes * kBoxBytes;
  static constexpr int kBarriers = 2 * kExpandStages + 2 + 4 * kStages;
  static constexpr int kItem = kControl + kBarriers * 8 + 16 - kBarriers * 8 % 16;
  static constexpr int kBytes = kAlignment + kItem + 32;
  static_assert(kExpandStages * kExpandBoxes * kBoxBytes <= kControl);

  __device__ unsigned ExpandStage(int stage) const {
    return base + stage * kExpandBoxes * kBoxBytes;
  }
  __device__ unsigned Query() const { return base; }
  __device__ unsigned Key(int stage) const { return base + kKeys + stage * kKeyBoxes * kBoxBytes; }
  __device__ unsigned Value(int stage) const {
    return base + kValues + stage * kValueBoxes * kBoxBytes;
  }
  __device__ unsigned Barrier(int index) const { return base + kControl + index * 8; }
  // Full: one arrival and bytes.  Empty: an arrival of every consumer warp.
  __device__ unsigned ExpandFull(int stage) const { return Barrier(stage); }
  __device__ unsigned ExpandEmpty(int stage) const { return Barrier(kExpandStages + stage); }
  __device__ unsigned QueryFull() const { return Barrier(2 * kExpandStages); }
  __device__ unsigned QueryEmpty() const { return Barrier(2 * kExpandStages + 1); }
  __device__ unsigned KeyFull(int stage) const { return Barrier(2 * kExpandStages + 2 + stage); }
  __device__ unsigned KeyEmpty(int stage) const { return KeyFull(kStages + stage); }
  __device__ unsigned ValueFull(int stage) const { return KeyFull(2 * kStages + stage); }
  __device__ unsigned ValueEmpty(int stage) const { return KeyFull(3 * kStages + stage); }
  __device__ unsigned Item() const { return base + kItem; }  // 16 bytes, with the query
  // Which tile of keys a stage holds, times 2, plus 1 where bits decide.
  __device__ unsigned KeyTile(int stage) const { return base + kItem + 16 + stage * 4; }
  __device__ unsigned Counter() const { return base + kItem + 24; }

  __device__ void Init() const {
    const auto init = [](unsigned full, unsigned empty) {
      ptx::BarrierInit(full, 1);
      ptx::BarrierInit(empty, kConsumerWarps);
    };
    for (int stage = 0; stage < kExpandStages; ++stage) {
      init(ExpandFull(stage), ExpandEmpty(stage));
    }
    init(QueryFull(), QueryEmpty());
    for (int stage = 0; stage < kStages; ++stage) {
      init(KeyFull(stage), KeyEmpty(stage));
      init(ValueFull(stage), ValueEmpty(stage));
    }
    ptx::BarrierInitFence();
    ptx::AsyncProxyFence();
  }
};

// A place in a ring of kStages.
struct Cursor {
  int stage = 0;
  unsigned phase = 0;
  __device__ void Next() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1U;
    }
  }
};

// A tile of rows with a head of scratch, as the producer tells the consumers; no rows: the end.
struct Item {
  int first_row;
  int rows;
  int head;
  int steps;
};

// Some heads of a window: as many at a time as scratch holds, in parts of equal size.
struct Share {
  AttentionWindow window;
  int first_head;
  int heads;
};

// Items of attention of a share.  Heads go in groups whose keys and values stay in the L2 cache
// together, long rows first within each.
struct ItemOrder {
  int group;
  int tiles;
  int heads;
  __device__ ItemOrder(const Share& share) : tiles(share.window.tiles), heads(share.heads) {
    constexpr int kCached = 24 << 20;
    group = max(1, min(heads, kCached / (share.window.keys * 2 * kTile * 2)));
  }
  __device__ int Items() const { return tiles * heads; }
  __device__ int2 TileAndHead(int item) const {
    const int first = item / (group * tiles) * group;
    const int own = min(group, heads - first);
    const int place = item - first * tiles;
    return {tiles - 1 - place / own, first + place % own};
  }
};

// role.Gather(window), role.Expand(share), role.Attend(share) in turn, a barrier over the grid
// after each.  Every thread of the grid comes through the same barriers.
template <typename Role>
__device__ void RunWindows(int all_heads, const MaskedScratch& scratch, Role& role) {
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  const int windows = *scratch.window_count;
  for (int i = 0; i < windows; ++i) {
    const AttentionWindow window = scratch.windows[i];
    role.Gather(window);
    grid.sync();
    // No division of 64 bits and none rounded to nearest in this kernel: they are calls, and with a
    // call in it the compiler gives no role more registers than the launch has.
    const int held = static_cast<int>(scratch.keys_max) * scratch.heads / max(window.keys, 1);
    const int parts = (all_heads + held - 1) / held;
    const int heads = (all_heads + parts - 1) / parts;
    for (int head = 0; head < all_heads; head += heads) {
      const Share share{window, head, min(heads, all_heads - head)};
      role.Expand(share);
      grid.sync();
      role.Attend(share);
      grid.sync();
    }
  }
}

}  // namespace dsa::cuda::warpgroup
