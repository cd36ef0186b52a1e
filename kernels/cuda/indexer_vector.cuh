// The steps that indexer keys and queries share: RoPE on the first 64 of 128 values, the Hadamard
// rotation, and quantization, in registers.
//
// A vector has 4, 8 or 32 lanes of one warp, which hold kValues each: lane l of kLanes those from
// 4 l on, four by four, 4 kLanes apart.  Its results do not depend on how many lanes it has.  32 of
// them are soonest ready with few vectors; with 4 of them a quarter of the work is shuffles instead
// of half.  Every lane must call each.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/kv_layout.h"

#include <type_traits>

namespace dsa::cuda {

inline constexpr int kIndexerChunk = 4;                 // values that lie together
using IndexerPart = float[kIndexerValues / kWarpSize];  // of a lane of 32
template <int kValues>
inline constexpr int kLanesOfIndexer = kIndexerValues / kValues;

// Both as storage of type T would keep them, by one conversion.
template <typename T>
__device__ void RoundTwo(float& a, float& b) {
  if constexpr (!std::is_same_v<T, float>) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
    a = __low2float(both);
    b = __high2float(both);
  }
}
// ToFp8 of four values, the first in the lowest byte.
__device__ inline unsigned FourFp8(float a, float b, float c, float d) {
  const unsigned lower = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  const unsigned upper = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return lower | upper << 16;
}

template <typename T, int kValues>
__device__ void LoadIndexerPart(const T* vector, int lane, float (&part)[kValues]) {
  constexpr int kApart = kLanesOfIndexer<kValues> * kIndexerChunk;
#pragma unroll
  for (int chunk = 0; chunk < kValues / kIndexerChunk; ++chunk) {
    const auto pack = LoadPack<kIndexerChunk>(vector + chunk * kApart + lane * kIndexerChunk);
#pragma unroll
    for (int i = 0; i < kIndexerChunk; ++i) {
      part[chunk * kIndexerChunk + i] = ToFloat(pack.values[i]);
    }
  }
}

// Rounds to T, which is exact where the values have been rounded to it before.
template <typename T>
__device__ void StoreIndexerPart(T* vector, int lane, const IndexerPart& part) {
  Pack<T, kIndexerChunk> pack;
#pragma unroll
  for (int i = 0; i < kIndexerChunk; ++i) {
    pack.values[i] = FromFloat<T>(part[i]);
  }
  StorePack(vector + lane * kIndexerChunk, pack);
}

// Pairs of values that lie side by side.  Columns of `part` from `first_column` on.
template <typename T>
__device__ __forceinline__ void RotateAdjacent(float* part, const float* cosines,
                                               const float* sines, int first_column) {
  constexpr int kPairs = kIndexerChunk / 2;
  const auto cosine = LoadPack<kPairs>(cosines + first_column / 2);
  const auto sine = LoadPack<kPairs>(sines + first_column / 2);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    Rotate(cosine.values[i], sine.values[i], part[2 * i], part[2 * i + 1]);
    RoundTwo<T>(part[2 * i], part[2 * i + 1]);
  }
}

// Value i is paired with i + 32, which half of the rotating lanes of 32 further holds.
template <typename T>
__device__ __forceinline__ void RotateAcrossLanes(IndexerPart& part, int lane, const float* cosines,
                                                  const float* sines) {
  constexpr int kRotating = kIndexerRopeValues / kIndexerChunk;
  const bool is_first = (lane & (kRotating / 2)) == 0;
  IndexerPart other;
#pragma unroll
  for (int i = 0; i < kIndexerChunk; ++i) {
    other[i] = __shfl_xor_sync(kAllLanes, part[i], kRotating / 2);
  }
  if (lane >= kRotating) {
    return;
  }
  const int first_pair = lane % (kRotating / 2) * kIndexerChunk;
  const auto cosine = LoadPack<kIndexerChunk>(cosines + first_pair);
  const auto sine = LoadPack<kIndexerChunk>(sines + first_pair);
#pragma unroll
  for (int i = 0; i < kIndexerChunk; ++i) {
    float a = is_first ? part[i] : other[i];
    float b = is_first ? other[i] : part[i];
    Rotate(cosine.values[i], sine.values[i], a, b);
    part[i] = Rounded<T>(is_first ? a : b);
  }
}

// The same where a lane holds both.
template <typename T, int kValues>
__device__ __forceinline__ void RotateInLane(float (&part)[kValues], int lane, const float* cosines,
                                             const float* sines) {
  constexpr int kApart = kLanesOfIndexer<kValues> * kIndexerChunk;
  constexpr int kOther = kIndexerRopeValues / 2 / kLanesOfIndexer<kValues>;  // in `part`
#pragma unroll
  for (int first = 0; first < kOther; first += kIndexerChunk) {
    const int pair = first / kIndexerChunk * kApart + lane * kIndexerChunk;
    const auto cosine = LoadPack<kIndexerChunk>(cosines + pair);
    const auto sine = LoadPack<kIndexerChunk>(sines + pair);
#pragma unroll
    for (int i = 0; i < kIndexerChunk; ++i) {
      float& a = part[first + i];
      float& b = part[first + i + kOther];
      Rotate(cosine.values[i], sine.values[i], a, b);
      RoundTwo<T>(a, b);
    }
  }
}

// Rotates the first 64 values by position, rounded to T.
template <typename T, int kValues>
__device__ void RotateByPosition(float (&part)[kValues], int lane, const RopeTable& table,
                                 std::int64_t position, RopeLayout layout) {
  constexpr int kApart = kLanesOfIndexer<kValues> * kIndexerChunk;
  const float* cosines = table.cos.Row(position);
  const float* sines = table.sin.Row(position);
  if (layout == RopeLayout::kInterleaved) {
#pragma unroll
    for (int chunk = 0; chunk < kValues / kIndexerChunk; ++chunk) {
      const int column = chunk * kApart + lane * kIndexerChunk;
      if (column < kIndexerRopeValues) {
        RotateAdjacent<T>(part + chunk * kIndexerChunk, cosines, sines, column);
      }
    }
  } else if constexpr (kValues == kIndexerChunk) {
    RotateAcrossLanes<T>(part, lane, cosines, sines);
  } else {
    static_assert(kApart <= kIndexerRopeValues / 2);
    RotateInLane<T>(part, lane, cosines, sines);
  }
}

// Sums and differences of values `stride` apart in a lane.
template <int kValues>
__device__ __forceinline__ void AddAndSubtract(float (&part)[kValues], int stride) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    if ((i & stride) == 0) {
      const float a = part[i];
      const float b = part[i + stride];
      part[i] = a + b;
      part[i + stride] = a - b;
    }
  }
}

// H_128 / sqrt(128) applied to the values, H in Sylvester order: strides from 1 to 64; rounded to
// T.
template <typename T, int kValues>
__device__ void RotateByHadamard(float (&part)[kValues], int lane) {
  constexpr float kInverseRoot = 0.08838834764831845F;  // 128^-1/2
#pragma unroll
  for (int stride = 1; stride < kIndexerChunk; stride *= 2) {
    AddAndSubtract(part, stride);
  }
#pragma unroll
  for (int stride = 1; stride < kLanesOfIndexer<kValues>; stride *= 2) {
    const float sign = (lane & stride) == 0 ? 1.0F : -1.0F;
#pragma unroll
    for (float& value : part) {
      const float other = __shfl_xor_sync(kAllLanes, value, stride);
      value = fmaf(value, sign, other);  // a sum or difference, rounded once
    }
  }
#pragma unroll
  for (int stride = kIndexerChunk; stride < kValues; stride *= 2) {
    AddAndSubtract(part, stride);
  }
#pragma unroll
  for (int i = 0; i < kValues; i += 2) {
    part[i] *= kInverseRoot;
    part[i + 1] *= kInverseRoot;
    RoundTwo<T>(part[i], part[i + 1]);
  }
}

// Values in e4m3, four a word.  Returns the vector's power-of-two scale.
template <int kValues>
__device__ float QuantizeIndexerPart(const float (&part)[kValues],
                                     unsigned (&codes)[kValues / kIndexerChunk]) {
  float amax = 0.0F;
#pragma unroll
  for (const float value : part) {
    amax = fmaxf(amax, fabsf(value));
  }
#pragma unroll
  for (int offset = kLanesOfIndexer<kValues> / 2; offset > 0; offset /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(kAllLanes, amax, offset));
  }
  const float scale = BlockScale(amax, ScaleFormat::kPowerOfTwo);
  const float reciprocal = ReciprocalOfPower(scale);  // the same quotients
#pragma unroll
  for (int i = 0; i < kValues; i += kIndexerChunk) {
    codes[i / kIndexerChunk] = FourFp8(part[i] * reciprocal, part[i + 1] * reciprocal,
                                       part[i + 2] * reciprocal, part[i + 3] * reciprocal);
  }
  return scale;
}
// And stores a vector that has 32 lanes.
__device__ inline float QuantizeIndexerPart(const IndexerPart& part, int lane,
                                            std::uint8_t* vector) {
  unsigned codes[1];
  const float scale = QuantizeIndexerPart(part, codes);
  Pack<std::uint8_t, kIndexerChunk> bytes;
  memcpy(&bytes, codes, sizeof(bytes));
  StorePack(vector + lane * kIndexerChunk, bytes);
  return scale;
}

}  // namespace dsa::cuda
