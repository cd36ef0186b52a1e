// The producers of masked_attention_warpgroup.cu: a warp that keeps rings of tiles filled, and
// three that find out what rows attend to.
#pragma once

#include "kernels/cuda/masked_attention_warpgroup.cuh"

namespace dsa::cuda::warpgroup {

inline constexpr int kMaskBarrier = 1;  // named
inline constexpr unsigned kBothBlocks = 3;

// The first warp feeds the copy engine.  The others find masks while keys and values are expanded.
struct Producer {
  const MaskedAttentionParams& p;
  const MaskedScratch& scratch;
  const Maps& maps;
  Ring ring;
  unsigned rank;
  int ratio_uk;  // groups of 32 rows of w_uk from one head to the next
  int ratio_uv;  // rows of w_uv from one head to the next
  Cursor key = {};
  Cursor value = {};
  unsigned query_phase = 0;

  // Of the group.
  __device__ static int Warp() {
    return static_cast<int>(threadIdx.x) / kWarpSize - kConsumerWarps;
  }
  __device__ static bool IsFirstWarp() { return Warp() == 0; }

  __device__ void Gather(const AttentionWindow& window, const Progress& progress) const {
    if (IsFirstWarp()) {
      return;
    }
    AwaitCount(scratch.counters + kAttended, progress.attended);
    for (int tile = static_cast<int>(blockIdx.x); tile < window.tiles;
         tile += static_cast<int>(gridDim.x)) {
      FindMasks(window, tile);
    }
    Announce(scratch.counters + kMasked);
  }

  // What the rows of a tile attend to; a warp per tile of keys.
  __device__ void FindMasks(const AttentionWindow& window, int tile) const {
    const AttentionRun& run = RunOfTile(scratch, window, tile);
    const int first = (tile - run.first_tile) * kTile;
    const int rows = min(kTile, run.rows - first);
    const int key_tiles = (run.keys + kTile - 1) / kTile;
    TileMask* masks = scratch.tile_masks + tile * (scratch.keys_max / kTile);
    constexpr int kOwnRows = kTile / kWarpSize;
    int visible[kOwnRows];  // 0: no such row
    const std::uint64_t* words[kOwnRows];
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int own = i * kWarpSize + Lane();
      const int row = run.first_row + first + own;
      visible[i] = own < rows ? p.rows.positions.data[row] + 1 : 0;
      words[i] = p.selection.mask.data == nullptr ? nullptr : p.selection.mask.Row(row);
    }
    int steps = 0;
    for (int key_tile = Warp() - 1; key_tile < key_tiles; key_tile += kMaskWarps) {
      bool any = false;
      bool all = true;
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) {
        const auto bits_from = [&](int key) {
          return MaskWord(words[i], visible[i], key) & SeenBits(visible[i], key);
        };
        const std::uint64_t low = bits_from(key_tile * kTile);
        const std::uint64_t high = bits_from(key_tile * kTile + kMaskBits);
        any = any || (low | high) != 0;
        all = all && (visible[i] == 0 || (low & high) == ~0ULL);
      }
      any = __any_sync(kAllLanes, any ? 1 : 0) != 0;
      all = __all_sync(kAllLanes, all ? 1 : 0) != 0;
      if (Lane() == 0) {
        masks[key_tile] = all ? TileMask::kAll : (any ? TileMask::kSome : TileMask::kNone);
      }
      steps += any ? 1 : 0;
    }
    const unsigned counter = ring.Counter();
    const bool is_first = Warp() == 1 && Lane() == 0;
    if (is_first) {
      asm volatile("st.shared.u32 [%0], 0;" ::"r"(counter) : "memory");
    }
    ptx::NamedBarrierSync(kMaskBarrier, kMaskWarps * kWarpSize);
    if (Lane() == 0) {
      asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(counter), "r"(steps) : "memory");
    }
    ptx::NamedBarrierSync(kMaskBarrier, kMaskWarps * kWarpSize);
    if (is_first) {
      int total;
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(total) : "r"(counter) : "memory");
      scratch.tiles[tile] = {.first_row = run.first_row + first,
                             .rows = rows,
                             .first_key = run.first_key,
                             .key_tiles = key_tiles,
                             .steps = total};
    }
  }

  // The blocks of a pair go through the same stages: what one brings for both may land when both
  // have made room.
  __device__ void Expand(const Share& share, const Progress& progress) const {
    if (!IsFirstWarp()) {
      return;
    }
    AwaitCount(scratch.counters + kGathered, progress.gathered);
    if (Lane() != 0) {
      return;
    }
    ptx::CopyEngineFence();
    const ExpandOrder order(share);
    for (int pair = order.First(); pair < order.items; pair += order.Step()) {
      const int2 place = order.TileAndHead(pair, rank);
      const bool is_shared = order.TileAndHead(pair, rank ^ 1U).y == place.y;
      const int first_key = place.x * kTile;
      const int head = share.first_head + place.y;
      for (int step = 0; step < kExpandSteps; ++step) {
        const int stage = step % kExpandStages;
        const unsigned full = ring.ExpandFull(stage);
        const unsigned target = ring.ExpandStage(stage);
        const ptx::At5 of_keys{step * kBox, 0, 0, 0, head * ratio_uk};
        const ptx::At2 of_values{step * kBox, head * ratio_uv};
        AwaitStage(step);
        ptx::BarrierExpect(full, kExpandBoxes * kBoxBytes);
        ptx::CopyBox(target, maps.latents, full, ptx::At2{step * kBox, first_key});
        if (!is_shared) {
          ptx::CopyBox(target + kBoxBytes, maps.w_uk, full, of_keys);
          ptx::CopyBox(target + 2 * kBoxBytes, maps.w_uv, full, of_values);
        } else if (rank == 0) {
          ptx::CopyBoxToBlocks(target + kBoxBytes, maps.w_uk, full, of_keys, kBothBlocks);
        } else {
          ptx::CopyBoxToBlocks(target + 2 * kBoxBytes, maps.w_uv, full, of_values, kBothBlocks);
        }
      }
    }
    // Attention lies over these stages.
    for (int stage = 0; stage < kExpandStages; ++stage) {
      AwaitStage(stage);
    }
  }
  __device__ void AwaitStage(int step) const {
    ptx::BarrierWait(ring.ExpandEmpty(step % kExpandStages), (step / kExpandStages & 1U) ^ 1U);
  }

  // An item and the first of its masks.  All of the warp's lanes hold the same, but for the mask.
  struct Work {
    int item;
    int tile_index;
    int head;  // of the share
    AttentionTile tile;
    TileMask mask;  // of the lane's tile of keys
  };
  __device__ int Ticket(const Progress& progress) const {
    return Lane() == 0
               ? static_cast<int>(atomicAdd(scratch.counters + kItemsTaken, 1U) - progress.items)
               : 0;
  }
  __device__ const TileMask* Masks(int tile_index) const {
    return scratch.tile_masks + tile_index * (scratch.keys_max / kTile);
  }
  // Nothing waits for what is loaded here before the item's turn.
  __device__ Work Find(const ItemOrder& order, int ticket) const {
    Work work = {};
    work.item = __shfl_sync(kAllLanes, ticket, 0);
    if (work.item < order.Items()) {
      const int2 place = order.TileAndHead(work.item);
      work.tile_index = place.x;
      work.head = place.y;
      work.tile = scratch.tiles[place.x];
      work.mask = Lane() < scratch.keys_max / kTile ? Masks(place.x)[Lane()] : TileMask::kNone;
    }
    return work;
  }

  // While an item's keys are brought, the next item is looked up, and its first keys are on their
  // way before the consumers are done with this one's query.
  __device__ void Attend(const Share& share, const Progress& progress) {
    if (!IsFirstWarp()) {
      return;
    }
    const ItemOrder order(share);
    int ready = 0;  // heads of the share that are expanded
    AwaitCount(scratch.counters + kMasked, progress.masked);
    AwaitCount(scratch.counters + kAttended, progress.attended);  // the last tickets before these
    Work work = Find(order, Ticket(progress));
    while (work.item < order.Items()) {
      if (work.head >= ready) {
        for (int head = ready + Lane(); head <= work.head; head += kWarpSize) {
          AwaitAlone(scratch.counters + kMaskedCounters + share.first_head + head,
                     progress.expanded);
        }
        __syncwarp();
        ptx::CopyEngineFence();
        ready = work.head + 1;
      }
      work = Bring(share, order, progress, work);
    }
    for (int group = 0; group < kConsumerGroups; ++group) {
      Await(group);
      if (Lane() == 0) {
        Tell(group, {.first_row = 0, .rows = 0, .head = 0, .steps = 0});
        ptx::BarrierArrive(ring.QueryFull(group));
      }
    }
    query_phase ^= 1U;
  }

  __device__ void Await(int group) const {
    ptx::BarrierWait(ring.QueryEmpty(group), query_phase ^ 1U);
  }
  // A group sees it when its query's phase ends.
  __device__ void Tell(int group, const Item& item) const {
    asm volatile("st.shared.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(ring.Item(group)),
                 "r"(item.first_row), "r"(item.rows), "r"(item.head), "r"(item.steps)
                 : "memory");
  }

  // The query and the tiles of keys that some row attends to; returns the next item, which is taken
  // a few steps before the end: blocks that take it sooner end at different times.
  __device__ Work Bring(const Share& share, const ItemOrder& order, const Progress& progress,
                        const Work& work) {
    constexpr int kTicketSteps = 3;
    constexpr int kFindSteps = 2;
    const AttentionTile& tile = work.tile;
    const int first = work.head * share.window.keys + tile.first_key;  // in expanded keys
    Work next = {};
    int ticket = 0;
    int to_come = tile.steps;
    const auto look_ahead = [&](bool is_first) {
      if (is_first ? to_come <= kTicketSteps : to_come == kTicketSteps) {
        ticket = Ticket(progress);
      }
      if (is_first ? to_come <= kFindSteps : to_come == kFindSteps) {
        next = Find(order, ticket);
      }
    };
    for (int base = 0; base < tile.key_tiles; base += kWarpSize) {
      TileMask mask = TileMask::kNone;
      if (base + Lane() < tile.key_tiles) {
        mask = base == 0 ? work.mask : Masks(work.tile_index)[base + Lane()];
      }
      unsigned left = __ballot_sync(kAllLanes, mask != TileMask::kNone);
      const unsigned some = __ballot_sync(kAllLanes, mask == TileMask::kSome);
      for (; left != 0; left &= left - 1) {
        const int bit = __ffs(static_cast<int>(left)) - 1;
        const int key_tile = base + bit;
        const bool is_first = to_come == tile.steps;
        BringKeys(key_tile, (some >> bit & 1U) != 0, first, tile.first_key);
        if (is_first) {
          BringQuery(tile, share.first_head + work.head);
        }
        look_ahead(is_first);
        BringValues(first + key_tile * kTile);
        --to_come;
      }
    }
    if (tile.steps == 0) {
      BringQuery(tile, share.first_head + work.head);
      look_ahead(true);
    }
    return next;
  }

  __device__ void BringQuery(const AttentionTile& tile, int head) {
    for (int group = 0; group < kConsumerGroups; ++group) {
      Await(group);
      if (Lane() == 0) {
        Tell(group,
             {.first_row = tile.first_row, .rows = tile.rows, .head = head, .steps = tile.steps});
        const unsigned full = ring.QueryFull(group);
        ptx::BarrierExpect(full, kQueryBytes);
        for (int box = 0; box < kKeyBoxes; ++box) {
          ptx::CopyBox(ring.Query(group) + box * kQueryBoxBytes, maps.q, full,
                       ptx::At3{box * kBox, head, tile.first_row + group * kGroupRows});
        }
      }
    }
    query_phase ^= 1U;
  }

  __device__ void BringKeys(int key_tile, bool bits_decide, int first, int first_rope) {
    const unsigned full = ring.KeyFull(key.stage);
    ptx::BarrierWait(ring.KeyEmpty(key.stage), key.phase ^ 1U);
    if (Lane() == 0) {
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(ring.KeyTile(key.stage)),
                   "r"(key_tile * 2 + (bits_decide ? 1 : 0))
                   : "memory");
      ptx::BarrierExpect(full, kKeyBoxes * kBoxBytes);
      const unsigned keys = ring.Key(key.stage);
      const int row = first + key_tile * kTile;
      ptx::CopyBox(keys, maps.keys, full, ptx::At2{0, row});
      ptx::CopyBox(keys + kBoxBytes, maps.keys, full, ptx::At2{kBox, row});
      ptx::CopyBox(keys + 2 * kBoxBytes, maps.ropes, full,
                   ptx::At2{0, first_rope + key_tile * kTile});
    }
    key.Next();
  }
  __device__ void BringValues(int row) {
    const unsigned full = ring.ValueFull(value.stage);
    ptx::BarrierWait(ring.ValueEmpty(value.stage), value.phase ^ 1U);
    if (Lane() == 0) {
      ptx::BarrierExpect(full, kValueBoxes * kBoxBytes);
      const unsigned values = ring.Value(value.stage);
      ptx::CopyBox(values, maps.values, full, ptx::At2{0, row});
      ptx::CopyBox(values + kBoxBytes, maps.values, full, ptx::At2{kBox, row});
    }
    value.Next();
  }
};

}  // namespace dsa::cuda::warpgroup
