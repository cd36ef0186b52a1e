// What every kernel does with single values: loads and stores of float32 and bfloat16, rounding,
// fp8, and the choice of an element type at launch.  Same rounding as common/numeric.h.
#pragma once

#include "common/check.h"
#include "common/numeric.h"
#include "common/view.h"

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp8.h>

namespace dsa::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

__device__ inline float ToFloat(float value) {
  return value;
}
__device__ inline float ToFloat(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <typename T>
__device__ T FromFloat(float value);
template <>
__device__ inline float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 FromFloat<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Two values as bfloat16, `low` in the lower half of the word.
__device__ inline unsigned Bf16PairOf(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

// Four lanes that lie together turn their four words each: word i of lane q becomes word q of lane
// i.
__device__ inline void TurnWords(unsigned (&words)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool is_upper = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int low = bit == 1 ? 2 * i : i;
      const int high = low + bit;
      const unsigned got = __shfl_xor_sync(kAllLanes, is_upper ? words[low] : words[high], bit);
      words[low] = is_upper ? got : words[low];
      words[high] = is_upper ? words[high] : got;
    }
  }
}

// `value` as storage of type T would keep it.
template <typename T>
__device__ float Rounded(float value) {
  return ToFloat(FromFloat<T>(value));
}

// kWidth values that lie together, moved by one access where they are aligned to their size, of at
// most 16 bytes.
template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T) < 16 ? kWidth * sizeof(T) : 16) Pack {
  T values[kWidth];
};
template <int kWidth, typename T>
__device__ Pack<T, kWidth> LoadPack(const T* from) {
  using Packed = Pack<T, kWidth>;
  if (reinterpret_cast<std::uintptr_t>(from) % alignof(Packed) == 0) {
    return *reinterpret_cast<const Packed*>(from);
  }
  Packed pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    pack.values[i] = from[i];
  }
  return pack;
}
template <int kWidth, typename T>
__device__ void StorePack(T* to, const Pack<T, kWidth>& pack) {
  using Packed = Pack<T, kWidth>;
  if (reinterpret_cast<std::uintptr_t>(to) % alignof(Packed) == 0) {
    *reinterpret_cast<Packed*>(to) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    to[i] = pack.values[i];
  }
}

// Nearest, ties to even, saturating at 448; NaN stays NaN.
__device__ inline std::uint8_t ToFp8(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}
__device__ inline float Fp8ToFloat(std::uint8_t bits) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(bits, __NV_E4M3)));
}

// Four e4m3 values in two registers of two halves; exact.
__device__ inline void ToHalves(unsigned bytes, unsigned& lower, unsigned& upper) {
  const auto convert = [](unsigned pair) {
    const __half2_raw halves =
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
    return static_cast<unsigned>(halves.x) | static_cast<unsigned>(halves.y) << 16;
  };
  lower = convert(bytes & 0xFFFFU);
  upper = convert(bytes >> 16);
}

// Fp8BlockScale of common/numeric.h.  The power of two without a division, some 100 cycles of
// latency: 448 is 1.75 times 2^8, so the quotient's exponent grows where amax has a mantissa above
// 1.75, for every float as if it were divided and rounded.
__device__ inline float BlockScale(float amax, ScaleFormat format) {
  static_assert(kFp8E4m3Max == 448.0F);
  const float clamped = fmaxf(amax, 1e-4F);
  if (format == ScaleFormat::kPlain) {
    return clamped / kFp8E4m3Max;
  }
  constexpr unsigned kInfinity = 0x7F800000U;
  const unsigned bits = __float_as_uint(clamped);
  const unsigned above = (bits & 0x7FFFFFU) > 0x600000U ? 1U : 0U;
  return __uint_as_float(bits >= kInfinity ? kInfinity : ((bits >> 23) - 8 + above) << 23);
}

// 1 / scale of a power of two that BlockScale gives.
__device__ inline float ReciprocalOfPower(float scale) {
  const unsigned bits = __float_as_uint(scale);
  return bits == 0x7F800000U ? 0.0F : __uint_as_float((254U << 23) - bits);
}

// Divides by a block's scale, of whose formats one needs no division; both round as a division.
class ScaleDivisor {
 public:
  __device__ ScaleDivisor(float scale, ScaleFormat format)
      : is_power_(format == ScaleFormat::kPowerOfTwo),
        factor_(is_power_ ? ReciprocalOfPower(scale) : scale) {}
  __device__ float operator()(float value) const {
    return is_power_ ? value * factor_ : value / factor_;
  }

 private:
  bool is_power_;
  float factor_;
};

__device__ inline float WarpSum(float value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}
__device__ inline float WarpMax(float value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// The sum over a block of kThreads, in the same order in every thread.  Every thread must call it.
template <int kThreads>
__device__ float BlockSum(float value) {
  __shared__ float warp_sums[kThreads / kWarpSize];
  value = WarpSum(value);
  __syncthreads();  // the array may still be read from a call before
  if (threadIdx.x % kWarpSize == 0) {
    warp_sums[threadIdx.x / kWarpSize] = value;
  }
  __syncthreads();
  float sum = 0.0F;
  for (const float warp_sum : warp_sums) {
    sum += warp_sum;
  }
  return sum;
}

// Calls body(T{}) with the element type that `type` names.
template <typename Body>
void DispatchFloat(DataType type, const Body& body) {
  switch (type) {
    case DataType::kF32: body(float{}); return;
    case DataType::kBf16: body(__nv_bfloat16{}); return;
    case DataType::kFp8E4m3:
    case DataType::kF64: break;
  }
  DSA_CHECK(false, "element type {} is not a float type", static_cast<int>(type));
}

}  // namespace dsa::cuda
