// One stage of an fp8 block-scaled product on a warpgroup, shared by the kernels that stream
// weights through a ring in shared memory: 64 weight rows (the M side) by kTokens rows of x, 128
// columns.
//
// Tiles lie in the 128-byte swizzle.  A lane 4 g + q of warp w holds in register 4 j + 2 h + i the
// weight row 16 w + g + 8 h and the row 8 j + 2 q + i of x.
// Where 64 rows of x are on the M side instead (LoadRowScales, AddRowStage, StoreRows), both change
// places: the row 16 w + g + 8 h of x and the weight row 8 j + 2 q + i, of 64 or 32.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/cuda/ptx/wgmma_fp8.cuh"
#include "kernels/kv_layout.h"

#include <cstdint>

namespace dsa::cuda {

inline constexpr int kSlabRows = 64;
inline constexpr int kSlabBytes = kSlabRows * kValuesPerScale;
inline constexpr int kTileAlignment = 1024;  // of swizzled tiles
// Of a block; a multiprocessor has kBlockSystemBytes more for each block.
inline constexpr int kBlockSharedBytesMax = 227 * 1024;
inline constexpr int kBlockSystemBytes = 1024;

// Where a thread is in a ring of stages.  `turn` counts those it has passed.
struct Cursor {
  int stage = 0;
  unsigned phase = 0;
  int turn = 0;
  __device__ void Next(int stages) {
    ++turn;
    if (++stage == stages) {
      stage = 0;
      phase ^= 1U;
    }
  }
};

// Begins partial = slab . inputs^T and commits it as a group of its own.
template <int kTokens>
__device__ void BeginStage(unsigned slab, unsigned inputs, float (&partial)[kTokens / 2]) {
  const std::uint64_t a = ptx::SwizzledTile(slab);
  const std::uint64_t b = ptx::SwizzledTile(inputs);
  ptx::PinRegisters(partial);
  ptx::WgmmaFence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    ptx::WgmmaFp8<kTokens>::Run(partial, a + 2 * k, b + 2 * k, k > 0);
  }
  ptx::WgmmaCommit();
}

// The products of scales that a thread's values meet: those of its rows of x with the weight's.
template <int kTokens>
__device__ void LoadStageScales(unsigned x_scales, unsigned weight_scale, int lane,
                                float (&scales)[kTokens / 4]) {
  const float weight = ptx::LoadShared(weight_scale);
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    const float2 x = ptx::LoadShared2(x_scales + (8 * j + 2 * (lane % 4)) * 4);
    scales[2 * j] = x.x * weight;
    scales[2 * j + 1] = x.y * weight;
  }
}

// sum += partial * scales, once the group has ended.
template <int kTokens>
__device__ void AddStage(float (&partial)[kTokens / 2], const float (&scales)[kTokens / 4],
                         float (&sum)[kTokens / 2]) {
  ptx::PinRegisters(partial);
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    sum[i] = fmaf(partial[i], scales[i / 4 * 2 + i % 2], sum[i]);
  }
}

// The same where 64 rows of x are on the M side and weight rows on the N side: a thread has two
// rows of x, and all values of a row meet one product of scales.
//
// A thread's first row of x; the second is 8 further.
__device__ inline int FirstRow() {
  const int thread = static_cast<int>(threadIdx.x);
  return thread / kWarpSize % 4 * 16 + thread % kWarpSize / 4;
}
__device__ inline void LoadRowScales(unsigned x_scales, unsigned weight_scale, float (&scales)[2]) {
  const int row = FirstRow();
  const float weight = ptx::LoadShared(weight_scale);
  scales[0] = ptx::LoadShared(x_scales + row * 4) * weight;
  scales[1] = ptx::LoadShared(x_scales + (row + 8) * 4) * weight;
}
template <int kRegisters>
__device__ void AddRowStage(float (&partial)[kRegisters], const float (&scales)[2],
                            float (&sum)[kRegisters]) {
  ptx::PinRegisters(partial);
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) {
    sum[i] = fmaf(partial[i], scales[i / 2 % 2], sum[i]);
  }
}
// A warp's rows of x of the first `tokens`, and of each the first `outputs`, a multiple of 8.
template <int kRegisters, typename RowOf, typename Y>
__device__ void StoreRows(const float (&sum)[kRegisters], int tokens, int outputs,
                          const RowOf& row_of, Y /*type*/) {
  const int column = 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int t = FirstRow() + 8 * half;
    if (t < tokens) {
      Y* const row = row_of(t) + column;
#pragma unroll
      for (int j = 0; j < kRegisters / 4; ++j) {
        if (8 * j < outputs) {
          const float first = sum[4 * j + 2 * half];
          const float second = sum[4 * j + 2 * half + 1];
          if constexpr (sizeof(Y) == 4) {
            *reinterpret_cast<float2*>(row + 8 * j) = make_float2(first, second);
          } else {
            *reinterpret_cast<__nv_bfloat162*>(row + 8 * j) = __floats2bfloat162_rn(first, second);
          }
        }
      }
    }
  }
}

// The same by 16 bytes, whole sectors: four lanes have 2 of 8 neighbouring outputs of a row each,
// and turn 4 x 4 such pairs until each lane has 8.  Rows must be 16-byte aligned.
template <int kRegisters, typename RowOf>
__device__ void StoreRowsBy16(const float (&sum)[kRegisters], int tokens, int outputs,
                              const RowOf& row_of) {
  const int place = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int t = FirstRow() + 8 * half;
#pragma unroll
    for (int group = 0; group < kRegisters / 16; ++group) {
      unsigned pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int from = 4 * (4 * group + i) + 2 * half;
        pairs[i] = Bf16PairOf(sum[from], sum[from + 1]);
      }
      TurnWords(pairs, place);
      const int output = 8 * (4 * group + place);
      if (t < tokens && output < outputs) {
        *reinterpret_cast<uint4*>(row_of(t) + output) =
            make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      }
    }
  }
}

// A warp's 16 outputs of the first `tokens` rows, row t from row_of(t) on.
template <int kTokens, typename RowOf>
__device__ void StoreSlab(const float (&sum)[kTokens / 2], int tokens, int lane,
                          const RowOf& row_of, float /*type*/) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int t = i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (t < tokens) {
      row_of(t)[lane / 4 + i % 4 / 2 * 8] = sum[i];
    }
  }
}
// movmatrix turns 8 x 8 pieces, so that 4 lanes hold 8 neighbouring outputs of one row.
template <int kTokens, typename RowOf>
__device__ void StoreSlab(const float (&sum)[kTokens / 2], int tokens, int lane,
                          const RowOf& row_of, __nv_bfloat16 /*type*/) {
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    unsigned turned[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;"
                   : "=r"(turned[half])
                   : "r"(Bf16PairOf(sum[4 * j + 2 * half], sum[4 * j + 2 * half + 1])));
    }
    const int t = 8 * j + lane / 4;
    if (t < tokens) {
      __nv_bfloat16* row = row_of(t) + 2 * (lane % 4);
      *reinterpret_cast<unsigned*>(row) = turned[0];
      *reinterpret_cast<unsigned*>(row + 8) = turned[1];
    }
  }
}

}  // namespace dsa::cuda
