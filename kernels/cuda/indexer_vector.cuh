// The steps that indexer keys and queries share: RoPE on the first 64 of 128 values, the Hadamard
// rotation, and quantization, one block of 128 threads a vector, one value a thread.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/kv_layout.h"

namespace dsa::cuda {

inline constexpr int kIndexerThreads = kIndexerValues;

// Rotates the first 64 of the block's values by position; each thread passes and gets its own.
// `shared` holds 128 floats.
template <typename T>
__device__ float RotateByPosition(float value, float* shared, const RopeTable& table,
                                  std::int64_t position, RopeLayout layout) {
  shared[threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.x < kIndexerRopeValues / 2) {
    const int pair = static_cast<int>(threadIdx.x);
    const auto [first, second] = PairColumns(pair, kIndexerRopeValues, layout);
    float a = shared[first];
    float b = shared[second];
    Rotate(table, position, pair, a, b);
    shared[first] = Rounded<T>(a);
    shared[second] = Rounded<T>(b);
  }
  __syncthreads();
  return shared[threadIdx.x];
}

// H_128 / sqrt(128) applied to the block's values, H in Sylvester order; `shared` as above.
template <typename T>
__device__ float RotateByHadamard(float value, float* shared) {
  constexpr float kInverseRoot = 0.08838834764831845F;  // 128^-1/2
  __syncthreads();
  for (int stride = 1; stride < kIndexerValues; stride *= 2) {
    shared[threadIdx.x] = value;
    __syncthreads();
    const float other = shared[threadIdx.x ^ static_cast<unsigned>(stride)];
    value = (threadIdx.x & static_cast<unsigned>(stride)) == 0 ? value + other : other - value;
    __syncthreads();
  }
  return Rounded<T>(value * kInverseRoot);
}

// The power-of-two scale of the block's values, in every thread.
__device__ inline float VectorScale(float value, float* shared) {
  const float warp_max = WarpMax(fabsf(value));
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) {
    shared[threadIdx.x / kWarpSize] = warp_max;
  }
  __syncthreads();
  float amax = 0.0F;
  for (int warp = 0; warp < kIndexerThreads / kWarpSize; ++warp) {
    amax = fmaxf(amax, shared[warp]);
  }
  return BlockScale(amax, ScaleFormat::kPowerOfTwo);
}

}  // namespace dsa::cuda
