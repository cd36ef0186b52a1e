// The steps that indexer keys and queries share: RoPE on the first 64 of 128 values, the Hadamard
// rotation, and quantization, one warp a vector, in registers: lane l holds values 4 l .. 4 l + 3.
// Every lane must call each.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/kv_layout.h"

namespace dsa::cuda {

inline constexpr int kIndexerWidth = kIndexerValues / kWarpSize;
using IndexerPart = float[kIndexerWidth];  // a lane's values

template <typename T>
__device__ void LoadIndexerPart(const T* vector, int lane, IndexerPart& part) {
  const auto pack = LoadPack<kIndexerWidth>(vector + lane * kIndexerWidth);
#pragma unroll
  for (int i = 0; i < kIndexerWidth; ++i) {
    part[i] = ToFloat(pack.values[i]);
  }
}

// Rounds to T, which is exact where the values have been rounded to it before.
template <typename T>
__device__ void StoreIndexerPart(T* vector, int lane, const IndexerPart& part) {
  Pack<T, kIndexerWidth> pack;
#pragma unroll
  for (int i = 0; i < kIndexerWidth; ++i) {
    pack.values[i] = FromFloat<T>(part[i]);
  }
  StorePack(vector + lane * kIndexerWidth, pack);
}

// Rotates the first 64 values by position, rounded to T.
template <typename T>
__device__ void RotateByPosition(IndexerPart& part, int lane, const RopeTable& table,
                                 std::int64_t position, RopeLayout layout) {
  constexpr int kLanes = kIndexerRopeValues / kIndexerWidth;  // that hold values to rotate
  const float* cosines = table.cos.Row(position);
  const float* sines = table.sin.Row(position);
  if (layout == RopeLayout::kInterleaved) {
    if (lane < kLanes) {
      constexpr int kPairs = kIndexerWidth / 2;
      const auto cosine = LoadPack<kPairs>(cosines + lane * kPairs);
      const auto sine = LoadPack<kPairs>(sines + lane * kPairs);
#pragma unroll
      for (int i = 0; i < kIndexerWidth; i += 2) {
        Rotate(cosine.values[i / 2], sine.values[i / 2], part[i], part[i + 1]);
        part[i] = Rounded<T>(part[i]);
        part[i + 1] = Rounded<T>(part[i + 1]);
      }
    }
    return;
  }
  // Value i is paired with i + 32, which half of the rotating lanes further holds.
  const bool is_first = (lane & (kLanes / 2)) == 0;
  IndexerPart other;
#pragma unroll
  for (int i = 0; i < kIndexerWidth; ++i) {
    other[i] = __shfl_xor_sync(kAllLanes, part[i], kLanes / 2);
  }
  if (lane >= kLanes) {
    return;
  }
  const int first_pair = lane % (kLanes / 2) * kIndexerWidth;
  const auto cosine = LoadPack<kIndexerWidth>(cosines + first_pair);
  const auto sine = LoadPack<kIndexerWidth>(sines + first_pair);
#pragma unroll
  for (int i = 0; i < kIndexerWidth; ++i) {
    float a = is_first ? part[i] : other[i];
    float b = is_first ? other[i] : part[i];
    Rotate(cosine.values[i], sine.values[i], a, b);
    part[i] = Rounded<T>(is_first ? a : b);
  }
}

// H_128 / sqrt(128) applied to the values, H in Sylvester order; rounded to T.
template <typename T>
__device__ void RotateByHadamard(IndexerPart& part, int lane) {
  constexpr float kInverseRoot = 0.08838834764831845F;  // 128^-1/2
#pragma unroll
  for (int stride = 1; stride < kIndexerWidth; stride *= 2) {
#pragma unroll
    for (int i = 0; i < kIndexerWidth; ++i) {
      if ((i & stride) == 0) {
        const float a = part[i];
        const float b = part[i + stride];
        part[i] = a + b;
        part[i + stride] = a - b;
      }
    }
  }
#pragma unroll
  for (int stride = 1; stride < kWarpSize; stride *= 2) {
    const float sign = (lane & stride) == 0 ? 1.0F : -1.0F;
#pragma unroll
    for (int i = 0; i < kIndexerWidth; ++i) {
      const float other = __shfl_xor_sync(kAllLanes, part[i], stride);
      part[i] = fmaf(part[i], sign, other);  // a sum or difference, rounded once
    }
  }
#pragma unroll
  for (float& value : part) {
    value = Rounded<T>(value * kInverseRoot);
  }
}

using IndexerCodes = Pack<std::uint8_t, kIndexerWidth>;  // a lane's values in e4m3

// Returns the vector's power-of-two scale.
__device__ inline float QuantizeIndexerPart(const IndexerPart& part, IndexerCodes& codes) {
  float amax = 0.0F;
#pragma unroll
  for (const float value : part) {
    amax = fmaxf(amax, fabsf(value));
  }
  const float scale = BlockScale(WarpMax(amax), ScaleFormat::kPowerOfTwo);
  const float reciprocal = 1.0F / scale;  // a power of two as well: the same quotients
#pragma unroll
  for (int i = 0; i < kIndexerWidth; ++i) {
    codes.values[i] = ToFp8(part[i] * reciprocal);
  }
  return scale;
}
__device__ inline float QuantizeIndexerPart(const IndexerPart& part, int lane,
                                            std::uint8_t* vector) {
  IndexerCodes codes;
  const float scale = QuantizeIndexerPart(part, codes);
  StorePack(vector + lane * kIndexerWidth, codes);
  return scale;
}

}  // namespace dsa::cuda
