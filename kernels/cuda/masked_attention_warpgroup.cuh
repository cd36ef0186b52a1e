// What the warps of masked_attention_warpgroup.cu share: shared memory, barriers, the order of the
// work.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/masked_attention.h"
#include "kernels/cuda/ptx/copy_box.cuh"
#include "kernels/cuda/ptx/peer_block.cuh"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/cuda/ptx/wgmma_bf16.cuh"
#include "kernels/kv_layout.h"

#include <cstdint>

#include <cuda.h>

namespace dsa::cuda::warpgroup {

inline constexpr int kTile = kWarpgroupTile;  // rows, keys, and values of a key or value
inline constexpr int kBox = 64;               // columns of a box, 128 bytes
inline constexpr int kBoxBytes = kTile * kBox * 2;
inline constexpr int kGroupThreads = 128;
inline constexpr int kConsumerGroups = 2;  // of 64 rows each
inline constexpr int kConsumerThreads = kConsumerGroups * kGroupThreads;
inline constexpr int kConsumerWarps = kConsumerThreads / kWarpSize;
inline constexpr int kGroupRows = kTile / kConsumerGroups;
inline constexpr int kMaskWarps = 3;  // of the producer's group
inline constexpr int kThreads = kConsumerThreads + kGroupThreads;
// 64,512 that a block of 168 a thread has: 2 x 232 + 40 per lane of a group.
inline constexpr int kConsumerRegisters = 224;
inline constexpr int kProducerRegisters = 56;

inline constexpr int kKeyBoxes = (kTile + kLatentRopeValues) / kBox;
inline constexpr int kValueBoxes = kTile / kBox;
inline constexpr int kQueryBoxBytes = kGroupRows * kBox * 2;
inline constexpr int kQueryBytes = kKeyBoxes * kQueryBoxBytes;  // of a group
inline constexpr int kStages = 2;                               // of keys, and of values
inline constexpr int kExpandStages = 4;  // latents, and weights of keys and of values
inline constexpr int kExpandBoxes = 3;
inline constexpr int kExpandSteps = kLatentValues / kBox;
static_assert(kExpandSteps % (2 * kExpandStages) == 0, "an item leaves the ring as it found it");

__device__ inline int Lane() {
  return static_cast<int>(threadIdx.x) % kWarpSize;
}

// The same in every lane, which the compiler then knows: what depends on it is computed once a
// warp.
__device__ inline int Uniform(int value) {
  return __shfl_sync(kAllLanes, value, 0);
}

__device__ inline std::uint64_t UniformDescriptor(std::uint64_t descriptor) {
  return descriptor >> 32 << 32 |
         static_cast<unsigned>(Uniform(static_cast<int>(static_cast<unsigned>(descriptor))));
}

// Two blocks that share the weights of the expansion.
inline constexpr int kPair = 2;

// Of 64 keys from `key` on: bits of those that a row sees, and its mask's word, whose other bits
// mean nothing.  `mask` may be null.
__device__ inline std::uint64_t SeenBits(int visible, int key) {
  const int left = visible - key;
  return left <= 0 ? 0 : (left >= kMaskBits ? ~0ULL : (1ULL << left) - 1);
}
__device__ inline std::uint64_t MaskWord(const std::uint64_t* mask, int visible, int key) {
  return mask == nullptr || key >= visible ? ~0ULL : mask[key / kMaskBits];
}

// One more for a counter of scratch, by one lane, for all that the warp has done before; and the
// wait of a warp for `count` of them.
__device__ inline void Announce(unsigned* counter) {
  __syncwarp();
  if (Lane() == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  }
}
__device__ inline void AwaitAlone(const unsigned* counter, unsigned count) {  // one lane
  unsigned here = 0;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(here) : "l"(counter) : "memory");
  } while (here < count);
}
__device__ inline void AwaitCount(const unsigned* counter, unsigned count) {
  if (Lane() == 0 && count > 0) {
    AwaitAlone(counter, count);
  }
  __syncwarp();
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
  static constexpr int kBarriers = 2 * kExpandStages + 2 * kConsumerGroups + 4 * kStages;
  static constexpr int kItems = kControl + kBarriers * 8;
  static constexpr int kKeyTiles = kItems + 16 * kConsumerGroups;
  static constexpr int kCounter = kKeyTiles + 4 * kStages;
  static constexpr int kBytes = kAlignment + kCounter + 4;
  static_assert(kItems % 16 == 0);
  static_assert(kExpandStages * kExpandBoxes * kBoxBytes <= kControl);

  __device__ unsigned ExpandStage(int stage) const {
    return base + stage * kExpandBoxes * kBoxBytes;
  }
  __device__ unsigned Query(int group) const { return base + group * kQueryBytes; }
  __device__ unsigned Key(int stage) const { return base + kKeys + stage * kKeyBoxes * kBoxBytes; }
  __device__ unsigned Value(int stage) const {
    return base + kValues + stage * kValueBoxes * kBoxBytes;
  }
  __device__ unsigned Barrier(int index) const { return base + kControl + index * 8; }
  // Full: one arrival and bytes.  Empty: an arrival of every consumer warp; of a query those of its
  // group, of the expansion those of both blocks.
  __device__ unsigned ExpandFull(int stage) const { return Barrier(stage); }
  __device__ unsigned ExpandEmpty(int stage) const { return Barrier(kExpandStages + stage); }
  __device__ unsigned QueryFull(int group) const { return Barrier(2 * kExpandStages + group); }
  __device__ unsigned QueryEmpty(int group) const { return QueryFull(kConsumerGroups + group); }
  __device__ unsigned KeyFull(int stage) const { return QueryFull(2 * kConsumerGroups + stage); }
  __device__ unsigned KeyEmpty(int stage) const { return KeyFull(kStages + stage); }
  __device__ unsigned ValueFull(int stage) const { return KeyFull(2 * kStages + stage); }
  __device__ unsigned ValueEmpty(int stage) const { return KeyFull(3 * kStages + stage); }
  __device__ unsigned Item(int group) const { return base + kItems + group * 16; }  // and its query
  // Which tile of keys a stage holds, times 2, plus 1 where bits decide.
  __device__ unsigned KeyTile(int stage) const { return base + kKeyTiles + stage * 4; }
  __device__ unsigned Counter() const { return base + kCounter; }

  __device__ void Init() const {
    const auto init = [](unsigned full, unsigned empty, int warps = kConsumerWarps) {
      ptx::BarrierInit(full, 1);
      ptx::BarrierInit(empty, warps);
    };
    for (int stage = 0; stage < kExpandStages; ++stage) {
      init(ExpandFull(stage), ExpandEmpty(stage), kPair * kConsumerWarps);
    }
    for (int group = 0; group < kConsumerGroups; ++group) {
      init(QueryFull(group), QueryEmpty(group), kConsumerWarps / kConsumerGroups);
    }
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
// together, long rows first within each.  The last group is the largest: short rows of many heads
// fill up what its long ones leave.
struct ItemOrder {
  int group;
  int groups;
  int tiles;
  int heads;
  __device__ ItemOrder(const Share& share) : tiles(share.window.tiles), heads(share.heads) {
    constexpr int kCached = 24 << 20;
    group = max(1, min(heads, kCached / (share.window.keys * 2 * kTile * 2)));
    groups = heads / group;
  }
  __device__ int Items() const { return tiles * heads; }
  __device__ int2 TileAndHead(int item) const {
    const int own_group = min(item / (group * tiles), groups - 1);
    const int first = own_group * group;
    const int own = own_group + 1 < groups ? group : heads - first;
    const int place = item - first * tiles;
    return {tiles - 1 - place / own, first + place % own};
  }
};

// Tiles of expanded keys and values of a share, head after head.  A pair of blocks takes two that
// follow each other; the last one is done twice where their number is odd.
struct ExpandOrder {
  int key_tiles;
  int items;
  __device__ ExpandOrder(const Share& share)
      : key_tiles(share.window.keys / kTile), items(key_tiles * share.heads) {}
  __device__ int First() const { return static_cast<int>(blockIdx.x) / kPair * kPair; }
  __device__ int Step() const { return static_cast<int>(gridDim.x); }
  __device__ bool Exists(int pair, unsigned rank) const {
    return pair + static_cast<int>(rank) < items;
  }
  // x: the tile, y: the head of the share
  __device__ int2 TileAndHead(int pair, unsigned rank) const {
    const int item = min(pair + static_cast<int>(rank), items - 1);
    return {item % key_tiles, item / key_tiles};
  }
};

// What the counters of scratch will have reached when all blocks have done what this one has.
struct Progress {
  unsigned gathered = 0;
  unsigned masked = 0;
  unsigned expanded = 0;  // of each head
  unsigned attended = 0;
  unsigned items = 0;  // the first ticket of a share
};

// role.Gather(window), role.Expand(share), role.Attend(share) in turn.  No barrier over the grid
// stands between: who needs what other blocks have done waits for their counters.
template <typename Role>
__device__ void RunWindows(int all_heads, const MaskedScratch& scratch, Role& role) {
  const int windows = *scratch.window_count;
  Progress progress;
  for (int i = 0; i < windows; ++i) {
    const AttentionWindow window = scratch.windows[i];
    role.Gather(window, progress);
    progress.gathered += gridDim.x;
    progress.masked += gridDim.x * kMaskWarps;
    progress.expanded += window.keys / kTile * kConsumerWarps;
    // No division of 64 bits and none rounded to nearest in this kernel: they are calls, and with a
    // call in it the compiler gives no role more registers than the launch has.
    const int held = static_cast<int>(scratch.keys_max) * scratch.heads / max(window.keys, 1);
    const int parts = (all_heads + held - 1) / held;
    const int heads = (all_heads + parts - 1) / parts;
    for (int head = 0; head < all_heads; head += heads) {
      const Share share{window, head, min(heads, all_heads - head)};
      role.Expand(share, progress);
      role.Attend(share, progress);
      // Neither block of a pair writes stages of the next expansion, and none leaves, before both
      // are done with this memory.
      ptx::ClusterArriveRelease();
      ptx::ClusterWait();
      if (threadIdx.x < kWarpSize) {
        Announce(scratch.counters + kAttended);
      }
      progress.attended += gridDim.x;
      progress.items += window.tiles * share.heads + gridDim.x;
    }
  }
}

}  // namespace dsa::cuda::warpgroup
