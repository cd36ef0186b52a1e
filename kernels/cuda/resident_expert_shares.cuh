// Consumers where two blocks have the same tiles, half of the weight rows each
// (resident_experts.cuh), and the warps that store what they leave in shared memory.
//
// Pairs lie on the M side of the products here, always 64, and weight rows on the N side, 64 of a
// warpgroup: 32 of gate and the same 32 of up, or 64 of down.  So a thread has two pairs, whose
// scales are two values a stage instead of 16; SwiGLU happens in registers, and a maximum is that
// of a thread's eight values, four lanes, two warpgroups and two blocks.
#pragma once

#include "kernels/cuda/fp8_stage.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/peer_block.cuh"
#include "kernels/cuda/quantize_fp8.cuh"
#include "kernels/cuda/resident_expert_input.cuh"
#include "kernels/cuda/resident_expert_work.cuh"
#include "kernels/cuda/swiglu.cuh"

#include <cstdint>
#include <utility>

namespace dsa::cuda::resident_experts {

inline constexpr int kStagesAtOnce = 2;  // whose products are under way
// Lane 4 g + q of warp w holds in [4 j + 2 h + i] pair 16 w + g + 8 h and its warpgroup's weight
// row 8 j + 2 q + i.
inline constexpr int kShareValues = kTilePairs / 2;
using ShareSums = float[kShareValues];

// Where a consumer is in what it shares with others at the ends of tiles.
struct Ends {
  Cursor maxima;  // of inner tiles
  Cursor stores;  // of those that other warps store
};
// Until what the tile before left has been read.
__device__ inline void WaitForStores(BlockShared<true>& shared, const Ends& ends) {
  if (ends.stores.turn > 0) {
    ptx::BarrierWait(ptx::SharedAddress(&shared.stores_read), (ends.stores.turn - 1) % 2);
  }
}
// Leaves what a tile gave to the warps that store.
__device__ inline void LeaveToStore(BlockShared<true>& shared, Ends& ends, int lane) {
  __syncwarp();
  if (lane == 0) {
    ptx::BarrierArrive(ptx::SharedAddress(&shared.stores_ready));
  }
  ends.stores.Next(2);
}

// One warpgroup's rows over `blocks` stages, products of several under way at once: all that a turn
// begins end in it, as the compiler serialises products whose registers live across a loop's end.
__device__ inline void AccumulateShare(const Ring<true>& ring, Cursor& at, int blocks, int warp,
                                       int lane, ShareSums& sum) {
  const int warpgroup = warp / 4;
  const auto turn = [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    constexpr int kCount = sizeof...(kIndex);
    float partial[kCount][kShareValues];
    int stage[kCount];
    (
        [&] {
          stage[kIndex] = at.stage;
          ptx::BarrierWait(ring.full + 8 * at.stage, at.phase);
          ptx::AsyncProxyFence();  // rows of x were written by threads
          at.Next(ring.kStages);
          BeginStage<kTilePairs>(
              ring.inputs + stage[kIndex] * ring.kInputBytes,
              ring.tiles + stage[kIndex] * ring.kTileBytes + warpgroup * kSlabBytes,
              partial[kIndex]);
        }(),
        ...);
    (
        [&] {
          const unsigned scales = ring.scales + stage[kIndex] * ring.kScaleBytes;
          const float2 weights = ptx::LoadShared2(scales + kTilePairs * 4);
          const unsigned own = scales + (warp % 4 * 16 + lane / 4) * 4;
          const float x[2] = {ptx::LoadShared(own), ptx::LoadShared(own + 8 * 4)};
          // Of a row of x and a half of the weight rows.
          const float products[2][2] = {{x[0] * weights.x, x[0] * weights.y},
                                        {x[1] * weights.x, x[1] * weights.y}};
          ptx::WgmmaWait<kCount - kIndex - 1>();
          ptx::PinRegisters(partial[kIndex]);
#pragma unroll
          for (int i = 0; i < kShareValues; ++i) {
            sum[i] = fmaf(partial[kIndex][i], products[i / 2 % 2][i / (kShareValues / 2)], sum[i]);
          }
          __syncwarp();
          if (lane == 0) {
            ptx::BarrierArrive(ring.empty + 8 * stage[kIndex]);
          }
        }(),
        ...);
  };
#pragma unroll
  for (float& value : sum) {
    value = 0.0F;
  }
  int block = 0;
  for (; block + kStagesAtOnce <= blocks; block += kStagesAtOnce) {
    turn(std::make_integer_sequence<int, kStagesAtOnce>{});
  }
  for (; block < blocks; ++block) {
    turn(std::make_integer_sequence<int, 1>{});
  }
}

// SwiGLU of gate and up, quantized over the tile's 128 outputs, of which this warpgroup has 32.
__device__ inline void LeaveInner(const ExpertsParams& p, BlockShared<true>& shared,
                                  const Task& task, Ends& ends, int warp, int lane,
                                  ShareSums& sum) {
  constexpr int kHalf = kShareValues / 2;
  const int warpgroup = warp / 4;
  const int rank = static_cast<int>(ptx::ClusterRank());
  const unsigned there = ptx::SharedAddress(&shared.maxima_there);
  if (threadIdx.x == 0) {
    ptx::BarrierExpect(there, 2 * kTilePairs * sizeof(float));
  }
  float amax[2] = {};
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    sum[i] = Rounded<__nv_bfloat16>(
        SwiGluOf(Rounded<__nv_bfloat16>(p.up_is_first ? sum[kHalf + i] : sum[i]),
                 Rounded<__nv_bfloat16>(p.up_is_first ? sum[i] : sum[kHalf + i])));
    amax[i / 2 % 2] = fmaxf(amax[i / 2 % 2], fabsf(sum[i]));
  }
  auto& maxima = shared.maxima[ends.maxima.stage];
  const int first_pair = warp % 4 * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      amax[half] = fmaxf(amax[half], __shfl_xor_sync(kAllLanes, amax[half], offset));
    }
    if (lane % 4 == 0) {
      float* const place = &maxima[2 * rank + warpgroup][first_pair + 8 * half];
      *place = amax[half];
      ptx::StoreWordInBlock(ptx::AddressInBlock(ptx::SharedAddress(place), rank ^ 1),
                            __float_as_uint(amax[half]), ptx::AddressInBlock(there, rank ^ 1));
    }
  }
  WaitForStores(shared, ends);
  ptx::NamedBarrierSync(kConsumersMeet, kConsumers);
  ptx::BarrierWait(there, ends.maxima.turn % 2);
  ends.maxima.Next(2);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int pair = first_pair + 8 * half;
    const float scale = BlockScale(
        fmaxf(fmaxf(maxima[0][pair], maxima[1][pair]), fmaxf(maxima[2][pair], maxima[3][pair])),
        p.scale_format);
    const ScaleDivisor divided(scale, p.scale_format);
#pragma unroll
    for (int j = 0; j < kHalf / 4; ++j) {
      const float* const values = &sum[4 * j + 2 * half];
      *reinterpret_cast<std::uint16_t*>(
          &shared.packed[pair][warpgroup * 32 + 8 * j + 2 * (lane % 4)]) =
          static_cast<std::uint16_t>(ToFp8(divided(values[0])) | ToFp8(divided(values[1])) << 8);
    }
    if (rank == 0 && warpgroup == 0 && lane % 4 == 0 && pair < task.stored) {
      p.inner_scales[(task.first + pair) * (p.width / kValuesPerScale) + task.column] = scale;
    }
  }
  LeaveToStore(shared, ends, lane);
}

// An outer tile of bfloat16.
__device__ inline void LeaveOuter(BlockShared<true>& shared, Ends& ends, int warp, int lane,
                                  const ShareSums& sum) {
  WaitForStores(shared, ends);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int first = 0; first < kShareValues / 4; first += 4) {  // of eight rows each
      unsigned pieces[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const values = &sum[4 * (first + i) + 2 * half];
        pieces[i] = Bf16PairOf(values[0], values[1]);
      }
      ptx::StoreMatrices(
          ptx::SharedAddress(&shared.staged[warp % 4 * 16 + 8 * half + lane % 8]
                                           [warp / 4 * kSlabRows + (first + lane / 8) * 8]),
          pieces);
    }
  }
  LeaveToStore(shared, ends, lane);
}
// Of float32, stored here.
__device__ inline void StoreOuterShare(const ExpertsParams& p, const Task& task, int warp, int lane,
                                       const ShareSums& sum) {
  const std::int64_t column = task.column * std::int64_t{kTileRows} +
                              static_cast<int>(ptx::ClusterRank()) * kBoxRows +
                              warp / 4 * kSlabRows + 2 * (lane % 4);
  if (column < p.x.cols) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pair = warp % 4 * 16 + lane / 4 + 8 * half;
      if (pair < task.stored) {
        float* const row =
            static_cast<float*>(p.contributions) + (task.first + pair) * p.x.cols + column;
#pragma unroll
        for (int j = 0; j < kShareValues / 4; ++j) {
          const float* const values = &sum[4 * j + 2 * half];
          *reinterpret_cast<float2*>(row + 8 * j) = make_float2(values[0], values[1]);
        }
      }
    }
  }
  if (task.group >= 0) {
    Signal(p.counters.outer_done + task.column, lane);
  }
}

template <typename Y>
__device__ void RunShare(const ExpertsParams& p, BlockShared<true>& shared, const Ring<true>& ring,
                         const Task& task, Cursor& at, Ends& ends, int warp, int lane) {
  ShareSums sum;
  AccumulateShare(ring, at, task.end_block - task.first_block, warp, lane, sum);
  if (task.kind == TaskKind::kInner) {
    LeaveInner(p, shared, task, ends, warp, lane, sum);
  } else if (task.kind == TaskKind::kOuter) {
    if constexpr (sizeof(Y) == 2) {
      LeaveOuter(shared, ends, warp, lane, sum);
    } else {
      StoreOuterShare(p, task, warp, lane, sum);
    }
  }
}

// What warps that store do: what a tile gave goes to memory while consumers go on, and then it is
// announced.
template <typename Y>
__device__ void StoreTiles(const ExpertsParams& p, BlockShared<true>& shared, int store_warp,
                           int lane) {
  using L = Layout<true>;
  const int rank = static_cast<int>(ptx::ClusterRank());
  Cursor turn;
  int stored = 0;
  for (int index = 0;; ++index) {
    const Task task = index < kRehearsals ? RehearsalOf(p, index) : NextTask(shared, turn, lane);
    if (task.kind == TaskKind::kNone) {
      return;
    }
    const bool is_inner = task.kind == TaskKind::kInner;
    if (!is_inner && (task.kind != TaskKind::kOuter || sizeof(Y) != 2)) {
      continue;
    }
    ptx::BarrierWait(ptx::SharedAddress(&shared.stores_ready), stored++ % 2);
    // A row's pieces of 16 bytes.
    const auto copy = [&]<int kPieces>(std::integral_constant<int, kPieces>, const auto& from,
                                       std::uint8_t* to, std::int64_t stride) {
      constexpr int kRows = kWarpSize / kPieces;  // at once
      constexpr int kTurns = kTilePairs / kRows / L::kStoreWarps;
      constexpr int kTurnsAtOnce = kTurns < 8 ? kTurns : 8;
#pragma unroll 1
      for (int first = 0; first < kTurns; first += kTurnsAtOnce) {
        uint4 pieces[kTurnsAtOnce];
        const int row =
            ((first * L::kStoreWarps + store_warp * kTurnsAtOnce)) * kRows + lane / kPieces;
#pragma unroll
        for (int i = 0; i < kTurnsAtOnce; ++i) {
          pieces[i] =
              ptx::LoadWords4(ptx::SharedAddress(&from[row + i * kRows][0]) + lane % kPieces * 16);
        }
#pragma unroll
        for (int i = 0; i < kTurnsAtOnce; ++i) {
          if (row + i * kRows < task.stored) {
            *reinterpret_cast<uint4*>(to + (row + i * kRows) * stride + lane % kPieces * 16) =
                pieces[i];
          }
        }
      }
    };
    if (is_inner) {
      copy(std::integral_constant<int, L::kOutputs / 16>{}, shared.packed,
           reinterpret_cast<std::uint8_t*>(p.inner) + task.first * std::int64_t{p.width} +
               task.column * kBoxRows + rank * L::kOutputs,
           p.width);
    } else {
      const std::int64_t column = task.column * std::int64_t{kTileRows} + rank * kBoxRows;
      if (column < p.x.cols) {
        copy(std::integral_constant<int, kBoxRows * 2 / 16>{}, shared.staged,
             static_cast<std::uint8_t*>(p.contributions) + (task.first * p.x.cols + column) * 2,
             p.x.cols * 2);
      }
    }
    __syncwarp();
    if (lane == 0) {
      ptx::BarrierArrive(ptx::SharedAddress(&shared.stores_read));
    }
    if (task.group >= 0) {
      Signal(is_inner ? p.counters.inner_done + task.group : p.counters.outer_done + task.column,
             lane);
    }
  }
}

}  // namespace dsa::cuda::resident_experts
