// The sums over a token's experts in the resident launch (resident_experts.cuh): warps take 256
// columns of a token at a time.
#pragma once

#include "kernels/cuda/resident_expert_work.cuh"

#include <cstdint>

namespace dsa::cuda::resident_experts {

// 16-byte aligned values that other blocks have written meanwhile.
template <typename Columns, typename Y>
__device__ inline void LoadFresh(const Y* from, Columns& to) {
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Columns) / sizeof(uint4)); ++i) {
    reinterpret_cast<uint4*>(&to)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
  }
}

// A token's slots, one a lane.
struct TokenSlots {
  int place;
  float weight;
  __device__ TokenSlots(const ExpertsParams& p, int token, int lane)
      : place(lane < p.choice.slots() ? p.sorted.places[token * p.choice.slots() + lane] : -1),
        weight(lane < static_cast<int>(p.choice.experts.cols) ? p.weights.Row(token)[lane] : 1.0F) {
  }
};

// 256 columns of a token by one warp: its contributions in order, the shared expert's last.
template <typename Y>
__device__ inline void SumColumns(const ExpertsParams& p, int token, const TokenSlots& own,
                                  std::int64_t column, int lane) {
  constexpr int kWidth = 8;
  constexpr int kAtOnce = 9;  // of DeepSeek-V3: eight experts and the shared one
  using Columns = Pack<Y, kWidth>;
  constexpr int kLineLanes = 128 / static_cast<int>(sizeof(Columns));
  const int slots = p.choice.slots();
  const bool has_columns = column < p.x.cols;
  Y* const contributions = static_cast<Y*>(p.contributions) + column;
  float sum[kWidth] = {};
  for (int first = 0; first < slots; first += kAtOnce) {
    Columns values[kAtOnce];
    int places[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      places[i] = __shfl_sync(kAllLanes, own.place, min(first + i, kWarpSize - 1));
      if (places[i] >= 0 && has_columns) {
        LoadFresh(contributions + places[i] * p.x.cols, values[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float weight = __shfl_sync(kAllLanes, own.weight, min(first + i, kWarpSize - 1));
      if (places[i] >= 0) {
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          sum[c] = __fadd_rn(sum[c], __fmul_rn(weight, ToFloat(values[i].values[c])));
        }
      }
    }
  }
  if (has_columns) {
    Columns rounded;
    if (p.shared != nullptr) {
      const auto shared =
          LoadPack<kWidth>(static_cast<const Y*>(p.shared) + token * p.shared_stride + column);
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        sum[c] += ToFloat(shared.values[c]);
      }
    }
#pragma unroll
    for (int c = 0; c < kWidth; ++c) {
      rounded.values[c] = FromFloat<Y>(sum[c]);
    }
    StorePack(static_cast<Y*>(p.y) + token * p.y_stride + column, rounded);
  }
  // Otherwise L2 would write them to memory: 2 % of an expert's bytes at 16 rows.
  __syncwarp();
  for (int slot = 0; slot < slots; ++slot) {
    const int place = __shfl_sync(kAllLanes, own.place, slot);
    if (place >= 0 && has_columns && lane % kLineLanes == 0) {
      ptx::DiscardLine(contributions + place * p.x.cols);
    }
  }
}

// A warp takes 256 columns of a token as soon as all experts have given theirs.
template <typename Y, bool kPaired>
__device__ inline void Sum(const ExpertsParams& p, const Work& work, int lane) {
  const int tokens = static_cast<int>(p.x.rows);
  int ready = -1;
  while (true) {
    int item = 0;
    if (lane == 0) {
      item = atomicAdd(p.counters.sums_taken, 1);
    }
    item = __shfl_sync(kAllLanes, item, 0);
    const int tile = item / tokens;
    if (tile >= work.outer_tiles) {
      return;
    }
    const TokenSlots slots(p, item % tokens, lane);
    if (tile != ready) {
      WaitUntil(p.counters.outer_done + tile, work.groups * kOuterSignals<kPaired, Y>, 200, lane);
      ready = tile;
    }
    SumColumns<Y>(p, item % tokens, slots, tile * std::int64_t{kSumColumns} + lane * 8, lane);
  }
}

}  // namespace dsa::cuda::resident_experts
