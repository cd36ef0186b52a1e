// What a block of the attention kernels that join their parts themselves attends to, and the
// weights of its part beside its siblings'.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/latent_records.cuh"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/siblings.cuh"

#include <type_traits>

namespace dsa::cuda {

// Which row, heads and range of keys a block has.  Grid: groups of kGroupHeads heads, then ranges
// of keys, a power of two, then rows, so that the heads of a row meet the same records at the same
// time, and ranges of a row the same pages.
template <int kGroupHeads>
struct AttentionPlace {
  static constexpr int kHeads = kGroupHeads;
  int group;
  int range;  // of the launch: of all rows
  int splits;
  std::int64_t row;
  int item;  // of the launch: a row and a group of heads
  int split;
  int first_head;
  int heads;  // that exist, of the group

  __device__ AttentionPlace(const LatentAttentionParams& p, unsigned groups, int range_count)
      : group(static_cast<int>(blockIdx.x % groups)),
        range(static_cast<int>(blockIdx.x / groups)),
        splits(range_count),
        row(range >> Shift()),
        item(static_cast<int>(row) * static_cast<int>(groups) + group),
        split(range & (splits - 1)),
        first_head(group * kHeads),
        heads(min(kHeads, static_cast<int>(p.q_latent.heads) - first_head)) {}
  __device__ int Shift() const { return __ffs(splits) - 1; }
};

// And the keys, in turns of kKeys.
template <int kGroupHeads, int kKeys>
struct AttentionShare : AttentionPlace<kGroupHeads> {
  using Place = AttentionPlace<kGroupHeads>;
  RowKeys keys;
  int first;  // key
  int last;
  int turns;

  __device__ AttentionShare(const Place& place, const RowKeys& of_row)
      : Place(place), keys(of_row) {
    const int row_turns = (keys.count + kKeys - 1) / kKeys;
    const int share_keys = ((row_turns + this->splits - 1) >> this->Shift()) * kKeys;
    first = min(this->split * share_keys, keys.count);
    last = min(first + share_keys, keys.count);
    turns = (last - first + kKeys - 1) / kKeys;
  }
};

// The block's share.  A gathering warp asks for its first words at the same time as for the number
// of the row's keys, as if there were as many as a selection can have: the number tells.
template <int kPeers, typename Share, typename Tiles>
__device__ __forceinline__ Share TakeShare(const LatentAttentionParams& p, const Tiles& tiles,
                                           const typename Share::Place& place, bool is_gathering,
                                           FirstWords& ahead) {
  const std::int64_t row = place.row;
  const KeySelection& selection = p.selection;
  if (selection.slots.data == nullptr) {
    return Share(place, KeysOf(p.rows, selection, row));
  }
  RowKeys keys = {.table = nullptr,
                  .slots = selection.slots.Row(row),
                  .count = static_cast<int>(selection.slots.cols)};
  if (is_gathering) {
    const Share guess(place, keys);
    ahead = Gatherer<kPeers, Tiles>(tiles, guess.keys, p.cache.data, guess.first, guess.last)
                .LoadFirst();
  }
  // Of a kind that the compiler does not move in front of the other load: its first use waits.
  int count;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];"
               : "=r"(count)
               : "l"(selection.counts.data + row)
               : "memory");
  keys.count = count;
  return Share(place, keys);
}

// log2 of the sum of powers, of every head of a part.
template <typename Place>
__device__ float* LogsOf(const AttentionParts& parts, const Place& place, int split) {
  return reinterpret_cast<float*>(parts.maxima) +
         (place.item * parts.splits + split) * Place::kHeads;
}

// The block's part is written; waits until those of its siblings are there.  By kThreads threads,
// which `barrier` joins.
template <int kThreads, typename Share>
__device__ void MeetParts(const AttentionParts& parts, const Share& share, int thread,
                          int barrier) {
  ptx::NamedBarrierSync(barrier, kThreads);
  if (thread == 0) {
    MeetSiblings(parts.counters + share.item * 2, parts.splits);
  }
  ptx::NamedBarrierSync(barrier, kThreads);
}

// Calls join(std::integral_constant<int, splits>): parts are joined in registers.
template <typename Join>
__device__ void WithSplits(int splits, const Join& join) {
  switch (splits) {
    case 2: join(std::integral_constant<int, 2>{}); break;
    case 4: join(std::integral_constant<int, 4>{}); break;
    case 8: join(std::integral_constant<int, 8>{}); break;
    case 16: join(std::integral_constant<int, 16>{}); break;
    default: join(std::integral_constant<int, kSplitsMax>{}); break;
  }
}

// Weights of the parts, [splits, kHeads], and behind them 1 / their sum, [kHeads], to shared memory
// at `weights`, by kThreads threads.  What they wrote is there after a barrier of theirs.
// log_of(split, head): log2 of the sum of powers of a part.
template <int kThreads, typename Share, typename LogOf>
__device__ void WeighParts(int splits, unsigned weights, int thread, const LogOf& log_of) {
  constexpr int kHeads = Share::kHeads;
  constexpr int kLanes = kThreads / kHeads;  // of a head
  const int head = thread / kLanes;
  const int lane = thread % kLanes;
  const unsigned own = weights + head * 4;
  constexpr float kNoSum = -1e30F;
  float largest = kNoSum;
#pragma unroll 4
  for (int split = lane; split < splits; split += kLanes) {
    const float log = log_of(split, head);
    ptx::StoreFloat(own + split * kHeads * 4, log);
    largest = fmaxf(largest, log);
  }
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, offset));
  }
  float sum = 0.0F;
#pragma unroll 1
  for (int split = lane; split < splits; split += kLanes) {
    const float weight = Exp2(ptx::LoadShared(own + split * kHeads * 4) - largest);
    ptx::StoreFloat(own + split * kHeads * 4, weight);
    sum += weight;
  }
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, offset);
  }
  if (lane == 0) {
    ptx::StoreFloat(own + splits * kHeads * 4, sum > 0.0F ? 1.0F / sum : 0.0F);
  }
}

// A block for each share of the rows, kCluster blocks of one range a cluster.
template <auto kKernel, int kGroupHeads, int kThreads, int kSharedBytes, unsigned kCluster = 1>
void LaunchShares(const LatentAttentionParams& params, const AttentionParts& parts,
                  cudaStream_t stream) {
  static PerDevice attribute;
  attribute.Once([] {
    return cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  });
  const int groups = HeadGroups(params.q_latent.heads, kGroupHeads);
  const auto blocks = static_cast<unsigned>(params.q_latent.rows * groups * parts.splits);
  LaunchDependent(
      kKernel,
      {.grid = blocks, .threads = kThreads, .shared_bytes = kSharedBytes, .cluster = kCluster},
      stream, params, parts, static_cast<unsigned>(groups));
}

}  // namespace dsa::cuda
