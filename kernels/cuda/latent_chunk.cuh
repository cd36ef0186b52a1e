// What the warpgroups of latent_attention_chunks.cu share: sizes, shared memory, and the items that
// a block goes through.
#pragma once

#include "kernels/cuda/attention_keys.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/latent_records.cuh"

namespace dsa::cuda::chunk {

inline constexpr int kHeads = kManyHeadsGroup;  // of a block
inline constexpr int kGroupThreads = 128;
inline constexpr int kGroupWarps = kGroupThreads / kWarpSize;
inline constexpr int kValueGroups = 2;
inline constexpr int kThreads = (1 + kValueGroups + 1) * kGroupThreads;
inline constexpr int kGroupValues = kLatentValues / kValueGroups;
inline constexpr int kProductValues = 128;  // of one instruction
inline constexpr int kProducts = kGroupValues / kProductValues;
inline constexpr int kSums = kProductValues / 2;  // of O, per thread and product
using Sums = float[kProducts][kSums];

// Registers per thread: 512 in all, as launched.
inline constexpr int kScoreRegisters = 144;
inline constexpr int kValueRegisters = 160;
inline constexpr int kGatherRegisters = 48;
static_assert(kScoreRegisters + kValueGroups * kValueRegisters + kGatherRegisters ==
              kThreads / kGroupThreads * 128);

inline constexpr int kSteps = kRecordValues / 16;  // of K of the scores
inline constexpr int kPartSteps = kGroupValues / 16;
inline constexpr int kRegisterSteps = kPartSteps;  // whose Q is in registers
inline constexpr int kSharedTiles = (kSteps - kRegisterSteps) / 4;
inline constexpr int kTileBytes = kKeyBlock * 128;
inline constexpr int kPartTiles = kGroupValues / 64;
inline constexpr int kPartBytes = kPartTiles * kTileBytes;
inline constexpr int kParts = 5;
inline constexpr int kRopes = 3;
inline constexpr int kScores = kKeyBlock / 2;  // of a thread
inline constexpr float kSlack = 8.0F;          // log2 by which scores may exceed their reference
inline constexpr float kNoReference = -1e30F;
inline constexpr float kLog2E = 1.44269504088896340736F;

// Addresses in shared memory.
struct Plan {
  unsigned queries;     // [kSharedTiles] tiles [64 heads, 64 values]
  unsigned parts;       // [kParts, kPartTiles] tiles [64 keys, 64 values]
  unsigned ropes;       // [kRopes] tiles
  unsigned factors;     // [kRopes, 64]  by which O is multiplied before P V is added
  unsigned inverse;     // [2, 64]  1 / sum, of an item
  unsigned part_full;   // [kParts] barriers from here on
  unsigned part_empty;  // [kParts]
  unsigned rope_empty;  // [kRopes]  P and factors are read
  unsigned powers;      // [kRopes]  P and factors are there
  unsigned scored;      // [kRopes]  the scores are there
  unsigned sums_full;   // [2]
  unsigned sums_empty;  // [2]

  static constexpr int kPartsOffset = kSharedTiles * kTileBytes;
  static constexpr int kRopesOffset = kPartsOffset + kParts * kPartBytes;
  static constexpr int kFactorsOffset = kRopesOffset + kRopes * kTileBytes;
  static constexpr int kBarriersOffset = kFactorsOffset + (kRopes + 2) * kHeads * 4;
  static constexpr int kBytes = kBarriersOffset + (2 * kParts + 3 * kRopes + 4) * 8;

  __device__ explicit Plan(unsigned base)
      : queries(base),
        parts(base + kPartsOffset),
        ropes(base + kRopesOffset),
        factors(base + kFactorsOffset),
        inverse(factors + kRopes * kHeads * 4),
        part_full(base + kBarriersOffset),
        part_empty(part_full + kParts * 8),
        rope_empty(part_empty + kParts * 8),
        powers(rope_empty + kRopes * 8),
        scored(powers + kRopes * 8),
        sums_full(scored + kRopes * 8),
        sums_empty(sums_full + 2 * 8) {}
  __device__ unsigned Part(int slot) const { return parts + slot * kPartBytes; }
  __device__ unsigned Rope(int slot) const { return ropes + slot * kTileBytes; }
  __device__ void InitBarriers() const {
    const auto init = [](unsigned barriers, int count, int arrivals) {
      for (int i = 0; i < count; ++i) {
        ptx::BarrierInit(barriers + i * 8, arrivals);
      }
    };
    init(part_full, kParts, kGroupThreads);
    init(part_empty, kParts, kGroupWarps);
    init(rope_empty, kRopes, kValueGroups * kGroupWarps);
    init(powers, kRopes, kGroupWarps);
    init(scored, kRopes, kGroupWarps);
    init(sums_full, 2, kGroupWarps);
    init(sums_empty, 2, kValueGroups * kGroupWarps);
    ptx::BarrierInitFence();
  }
};
static_assert(Plan::kBytes <= 227 * 1024, "a block may have no more on sm_90");

using PartCursor = BufferCursor<kParts>;
using RopeCursor = BufferCursor<kRopes>;
using SumCursor = BufferCursor<2>;

// The items of a block: item / groups is a row, the rest a group of heads, so that blocks side by
// side meet the same keys at the same time.
struct Items {
  const LatentAttentionParams& p;
  int groups;
  int count;

  __device__ Items(const LatentAttentionParams& params, int head_groups)
      : p(params),
        groups(head_groups),
        count(static_cast<int>(params.q_latent.rows) * head_groups) {}
  __device__ static int First() { return static_cast<int>(blockIdx.x); }
  __device__ static int Next(int item) { return item + static_cast<int>(gridDim.x); }
  __device__ std::int64_t Row(int item) const { return item / groups; }
  __device__ int FirstHead(int item) const { return item % groups * kHeads; }
  __device__ int Heads(int item) const {
    return min(kHeads, static_cast<int>(p.q_latent.heads) - FirstHead(item));
  }
  // 0 behind the last item.
  __device__ int Keys(int item) const {
    if (item >= count) {
      return 0;
    }
    return p.selection.slots.data != nullptr ? p.selection.counts.data[Row(item)]
                                             : p.rows.positions.data[Row(item)] + 1;
  }
};
__device__ inline int TurnsOf(int keys) {
  return (keys + kKeyBlock - 1) / kKeyBlock;
}

}  // namespace dsa::cuda::chunk
