// What a warpgroup does with 64 keys of the fp8 indexer cache and the queries of some rows:
// products on the fp8 tensor cores, ReLU, head weights, sums.  One place, so that every kernel of
// index scores gives the same bits.
//
//   A   64 keys of a block of the cache, in registers as they lie in the cache
//   B   queries, 128 bytes a head, in shared memory in the 128-byte swizzle
//   D   a thread has heads 8 i + 2 q and the next of keys g and g + 8 of its warp's 16
//
// The order of the columns in a product is free if both operands have the same: step 2 h + i of 4
// takes columns 64 h + 16 q + 8 i .. + 7 for q = 0 .. 3, so that lane q of a quad has 16 adjacent
// bytes of each half of a key.
//
// A product of 128 columns is four steps, and the tensor cores keep about 14 bits of what a step
// adds up; weights and sums over heads are float32, in one order.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/index_scores.h"
#include "kernels/cuda/ptx/wgmma_fp8_registers.cuh"

#include <cstdint>

namespace dsa::cuda {

inline constexpr int kIndexSteps = 4;    // of 32 columns
inline constexpr int kKeyRegisters = 4;  // of a thread in a step
using IndexKeys = unsigned[kIndexSteps][kKeyRegisters];

// Where columns 4 word .. 4 word + 3 of a head lie, in bytes from the first head's.
__device__ inline int QueryPlace(int head, int word) {
  const int step = word / 16 * 2 + word % 4 / 2;
  const int piece = 2 * step + word % 2;  // of 16 bytes, before the swizzle
  return head * kIndexerValues + (piece ^ head % 8) * 16 + word % 16 / 4 * 4;
}
// Where a head's weight lies among its row's: a lane's come in fours.
__device__ inline int WeightPlace(int head) {
  return head / 16 * 16 + head % 8 / 2 * 4 + head / 8 % 2 * 2 + head % 2;
}

// A thread's first key of 64; the second is 8 further.
__device__ inline int FirstKey(int thread_of_group) {
  return thread_of_group / kWarpSize * 16 + thread_of_group % kWarpSize / 4;
}
// Keys `first` and first + 8 of a block of the cache.  Lanes of odd g read the upper half first, so
// that a quarter warp reads all 32 banks of shared memory.
__device__ __forceinline__ void LoadIndexKeys(const std::uint8_t* block, int first, int lane,
                                              IndexKeys& keys) {
  const std::uint8_t* from = block + IndexerBlock::Values(first) + lane % 4 * 16;
  const bool is_odd = lane / 4 % 2 != 0;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const std::uint8_t* key = from + row * 8 * kIndexerValues;
    const uint4 one = *reinterpret_cast<const uint4*>(key + (is_odd ? 64 : 0));
    const uint4 other = *reinterpret_cast<const uint4*>(key + (is_odd ? 0 : 64));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 words = is_odd == (half == 0) ? other : one;
      keys[2 * half][row] = words.x;
      keys[2 * half][row + 2] = words.y;
      keys[2 * half + 1][row] = words.z;
      keys[2 * half + 1][row + 2] = words.w;
    }
  }
}

// Begins a product, by all threads of a warpgroup; `queries` is an address of shared memory, a
// multiple of 1,024.
template <int kHeads>  // of all rows together
__device__ __forceinline__ void BeginProduct(const IndexKeys& keys, unsigned queries,
                                             float (&products)[kHeads / 2]) {
  const std::uint64_t tile = ptx::SwizzledTile(queries);
  ptx::WgmmaFence();
#pragma unroll
  for (int step = 0; step < kIndexSteps; ++step) {
    ptx::WgmmaFp8Registers<kHeads>::Run(products, keys[step], tile + 2 * step, step > 0);
  }
  ptx::WgmmaCommit();
}
// And ends it.
template <int kHeads>
__device__ __forceinline__ void MultiplyIndexKeys(const IndexKeys& keys, unsigned queries,
                                                  float (&products)[kHeads / 2]) {
  BeginProduct<kHeads>(keys, queries, products);
  ptx::WgmmaWait<0>();
  ptx::PinRegisters(products);
}

// Twice the positive part, for weights of a half: an addition keeps a NaN, and is twice as fast as
// a maximum.
__device__ __forceinline__ float TwicePositive(float value) {
  return value + fabsf(value);
}
// Adds 8 heads of both keys; weights of heads 2 q and the next, halved.
__device__ __forceinline__ void AddHeads(float weight, float next, const float* products,
                                         float (&sums)[2]) {
#pragma unroll
  for (int key = 0; key < 2; ++key) {
    sums[key] = fmaf(weight, TwicePositive(products[2 * key]), sums[key]);
    sums[key] = fmaf(next, TwicePositive(products[2 * key + 1]), sums[key]);
  }
}
// Over the lanes of a quad, each of which has 8 i + 2 q and the next of all heads: the sum of the
// first key in even lanes, of the second in odd ones, over lanes 2 p and 2 p + 1 alone.
__device__ __forceinline__ float SumOfPair(const float (&sums)[2], int lane) {
  const bool is_odd = lane % 2 != 0;
  return (is_odd ? sums[1] : sums[0]) + __shfl_xor_sync(kAllLanes, is_odd ? sums[0] : sums[1], 1);
}

// A lane's weights of a row, in the order of WeightPlace.
template <int kHeads>
using IndexWeights = float4[kHeads / 16];
template <int kHeads>
__device__ __forceinline__ void LoadIndexWeights(const float* weights, int lane,
                                                 IndexWeights<kHeads>& to) {
  const auto* fours = reinterpret_cast<const float4*>(weights) + lane % 4;
#pragma unroll
  for (int i = 0; i < kHeads / 16; ++i) {
    to[i] = fours[4 * i];
  }
}
// SumOfPair of a row's products.
template <int kHeads>
__device__ __forceinline__ float SumOfHeads(const IndexWeights<kHeads>& weights,
                                            const float* products, int lane) {
  float of_keys[2] = {};
#pragma unroll
  for (int i = 0; i < kHeads / 16; ++i) {
    AddHeads(weights[i].x, weights[i].y, products + 8 * i, of_keys);
    AddHeads(weights[i].z, weights[i].w, products + 8 * i + 4, of_keys);
  }
  return SumOfPair(of_keys, lane);
}
// Of two such sums: a score before its scale, of the first key in even lanes, of the second in odd
// ones; of the first row in lanes 0 and 1 of a quad, of the last in 2 and 3.
__device__ __forceinline__ float SumOfRows(float first, float last, int lane) {
  const bool is_upper = lane % 4 >= 2;
  return (is_upper ? last : first) + __shfl_xor_sync(kAllLanes, is_upper ? first : last, 2);
}

}  // namespace dsa::cuda
