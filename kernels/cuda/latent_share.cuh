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

// A row, kGroupHeads heads and a range of keys, in turns of kKeys.  Grid: groups of heads, then
// ranges of keys, then rows, so that the heads of a row meet the same records at the same time.
template <int kGroupHeads, int kKeys>
struct AttentionShare {
  static constexpr int kHeads = kGroupHeads;
  std::int64_t row;
  int item;  // of the launch: a row and a group of heads
  int split;
  int first_head;
  int heads;  // that exist, of the group
  RowKeys keys;
  int first;  // key
  int last;
  int turns;

  __device__ AttentionShare(const LatentAttentionParams& p, int groups, int splits)
      : AttentionShare(p, groups, splits, KeysOf(p.rows, p.selection, RowOf(groups, splits))) {}
  __device__ AttentionShare(const LatentAttentionParams& p, int groups, int splits,
                            const RowKeys& of_row)
      : row(RowOf(groups, splits)),
        item(static_cast<int>(row) * groups + static_cast<int>(blockIdx.x) % groups),
        split(static_cast<int>(blockIdx.x) / groups % splits),
        first_head(static_cast<int>(blockIdx.x) % groups * kHeads),
        heads(min(kHeads, static_cast<int>(p.q_latent.heads) - first_head)),
        keys(of_row) {
    const int row_turns = (keys.count + kKeys - 1) / kKeys;
    const int share_keys = (row_turns + splits - 1) / splits * kKeys;
    first = min(split * share_keys, keys.count);
    last = min(first + share_keys, keys.count);
    turns = (last - first + kKeys - 1) / kKeys;
  }
  __device__ static std::int64_t RowOf(int groups, int splits) {
    return blockIdx.x / groups / splits;
  }
};

// The first words of a gathering warp if the row has as many keys as a selection can: the number
// comes at the same time and tells.
template <int kPeers, typename Tiles, typename Share>
__device__ __forceinline__ FirstWords GuessFirst(const LatentAttentionParams& p, const Tiles& tiles,
                                                 int groups, int splits) {
  const Matrix<const std::int32_t>& slots = p.selection.slots;
  if (slots.data == nullptr) {
    return {};
  }
  const Share guess(p, groups, splits,
                    {.table = nullptr,
                     .slots = slots.Row(Share::RowOf(groups, splits)),
                     .count = static_cast<int>(slots.cols)});
  return Gatherer<kPeers, Tiles>(tiles, guess.keys, p.cache.data, guess.first, guess.last)
      .LoadFirst();
}

// log2 of the sum of powers, of every head of a part.
template <typename Share>
__device__ float* LogsOf(const AttentionParts& parts, const Share& share, int split) {
  return reinterpret_cast<float*>(parts.maxima) +
         (share.item * parts.splits + split) * Share::kHeads;
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
      stream, params, parts, groups);
}

}  // namespace dsa::cuda
