// The producer of masked_attention_warpgroup.cu: one warp that keeps rings of tiles filled.
#pragma once

#include "kernels/cuda/masked_attention_warpgroup.cuh"

namespace dsa::cuda::warpgroup {

// The copy engine's warp.  The other warps of its group come along for the barriers.
struct Producer {
  const MaskedAttentionParams& p;
  const MaskedScratch& scratch;
  const Maps& maps;
  Ring ring;
  int ratio_uk;  // groups of 32 rows of w_uk from one head to the next
  int ratio_uv;  // rows of w_uv from one head to the next
  Cursor key = {};
  Cursor value = {};
  unsigned query_phase = 0;

  __device__ bool IsFirstWarp() const { return threadIdx.x / kWarpSize == kConsumerWarps; }

  __device__ void Gather(const AttentionWindow&) const {}

  __device__ void Expand(const Share& share) const {
    if (!IsFirstWarp() || Lane() != 0) {
      return;
    }
    ptx::CopyEngineFence();
    const int key_tiles = share.window.keys / kTile;
    for (int item = static_cast<int>(blockIdx.x); item < key_tiles * share.heads;
         item += static_cast<int>(gridDim.x)) {
      const int first_key = item % key_tiles * kTile;
      const int head = share.first_head + item / key_tiles;
      for (int step = 0; step < kExpandSteps; ++step) {
        const int stage = step % kExpandStages;
        const unsigned full = ring.ExpandFull(stage);
        const unsigned target = ring.ExpandStage(stage);
        ptx::BarrierWait(ring.ExpandEmpty(stage), (step / kExpandStages & 1U) ^ 1U);
        ptx::BarrierExpect(full, kExpandBoxes * kBoxBytes);
        ptx::CopyBox(target, maps.latents, full, ptx::At2{step * kBox, first_key});
        ptx::CopyBox(target + kBoxBytes, maps.w_uk, full,
                     ptx::At5{step * kBox, 0, 0, 0, head * ratio_uk});
        ptx::CopyBox(target + 2 * kBoxBytes, maps.w_uv, full,
                     ptx::At2{step * kBox, head * ratio_uv});
      }
    }
  }

  __device__ void Attend(const Share& share) {
    if (!IsFirstWarp()) {
      return;
    }
    ptx::CopyEngineFence();
    const ItemOrder order(share);
    for (;;) {
      int item = 0;
      if (Lane() == 0) {
        item = atomicAdd(scratch.next_item, 1);
      }
      item = __shfl_sync(kAllLanes, item, 0);
      if (item >= order.Items()) {
        break;
      }
      const int2 place = order.TileAndHead(item);
      const AttentionTile tile = scratch.tiles[place.x];
      const int head = share.first_head + place.y;
      if (Lane() == 0) {
        Tell({.first_row = tile.first_row, .rows = tile.rows, .head = head, .steps = tile.steps});
        const unsigned full = ring.QueryFull();
        ptx::BarrierExpect(full, kKeyBoxes * kBoxBytes);
        for (int box = 0; box < kKeyBoxes; ++box) {
          ptx::CopyBox(ring.Query() + box * kBoxBytes, maps.q, full,
                       ptx::At3{box * kBox, head, tile.first_row});
        }
      }
      LoadKeys(tile, scratch.tile_masks + place.x * (scratch.keys_max / kTile),
               place.y * share.window.keys + tile.first_key);
    }
    if (Lane() == 0) {
      Tell({.first_row = 0, .rows = 0, .head = 0, .steps = 0});
      ptx::BarrierArrive(ring.QueryFull());
    }
  }

  // The consumers see it when the query's phase ends.
  __device__ void Tell(const Item& item) {
    ptx::BarrierWait(ring.QueryEmpty(), query_phase ^ 1U);
    query_phase ^= 1U;
    asm volatile("st.shared.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(ring.Item()), "r"(item.first_row),
                 "r"(item.rows), "r"(item.head), "r"(item.steps)
                 : "memory");
  }

  // The tiles of keys that some row attends to.  `first`: of the run, in expanded keys.
  __device__ void LoadKeys(const AttentionTile& tile, const TileMask* masks, int first) {
    for (int base = 0; base < tile.key_tiles; base += kWarpSize) {
      const TileMask mask = base + Lane() < tile.key_tiles ? masks[base + Lane()] : TileMask::kNone;
      unsigned left = __ballot_sync(kAllLanes, mask != TileMask::kNone);
      const unsigned some = __ballot_sync(kAllLanes, mask == TileMask::kSome);
      if (Lane() != 0) {
        continue;
      }
      for (; left != 0; left &= left - 1) {
        const int bit = __ffs(static_cast<int>(left)) - 1;
        const int key_tile = base + bit;
        const int row = first + key_tile * kTile;
        const unsigned key_full = ring.KeyFull(key.stage);
        ptx::BarrierWait(ring.KeyEmpty(key.stage), key.phase ^ 1U);
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(ring.KeyTile(key.stage)),
                     "r"(key_tile * 2 + static_cast<int>(some >> bit & 1U))
                     : "memory");
        ptx::BarrierExpect(key_full, kKeyBoxes * kBoxBytes);
        const unsigned keys = ring.Key(key.stage);
        ptx::CopyBox(keys, maps.keys, key_full, ptx::At2{0, row});
        ptx::CopyBox(keys + kBoxBytes, maps.keys, key_full, ptx::At2{kBox, row});
        ptx::CopyBox(keys + 2 * kBoxBytes, maps.ropes, key_full,
                     ptx::At2{0, tile.first_key + key_tile * kTile});
        key.Next();
        const unsigned value_full = ring.ValueFull(value.stage);
        ptx::BarrierWait(ring.ValueEmpty(value.stage), value.phase ^ 1U);
        ptx::BarrierExpect(value_full, kValueBoxes * kBoxBytes);
        const unsigned values = ring.Value(value.stage);
        ptx::CopyBox(values, maps.values, value_full, ptx::At2{0, row});
        ptx::CopyBox(values + kBoxBytes, maps.values, value_full, ptx::At2{kBox, row});
        value.Next();
      }
    }
    __syncwarp();
  }
};

}  // namespace dsa::cuda::warpgroup
