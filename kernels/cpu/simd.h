// Eight float lanes (AVX2 and FMA, the binary's CPU level).  The number of lanes is part of the
// numerics: sums are kept per lane and folded by ReduceSum, so it is never changed per machine.
#pragma once

#include "common/numeric.h"

#include <bit>
#include <cstdint>

#include <immintrin.h>

namespace dsa {

inline constexpr std::int64_t kLanes = 8;

struct F32x8 {
  __m256 lanes;

  static F32x8 Zero() { return {_mm256_setzero_ps()}; }
  static F32x8 All(float value) { return {_mm256_set1_ps(value)}; }
};

inline F32x8 operator+(F32x8 a, F32x8 b) {
  return {_mm256_add_ps(a.lanes, b.lanes)};
}
inline F32x8 operator-(F32x8 a, F32x8 b) {
  return {_mm256_sub_ps(a.lanes, b.lanes)};
}
inline F32x8 operator*(F32x8 a, F32x8 b) {
  return {_mm256_mul_ps(a.lanes, b.lanes)};
}
inline F32x8 operator/(F32x8 a, F32x8 b) {
  return {_mm256_div_ps(a.lanes, b.lanes)};
}

// a * b + c with one rounding.
inline F32x8 MultiplyAdd(F32x8 a, F32x8 b, F32x8 c) {
  return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)};
}

// The larger of each lane; `b` where `a` is NaN.
inline F32x8 MaxSkippingNan(F32x8 a, F32x8 b) {
  return {_mm256_max_ps(a.lanes, b.lanes)};
}

inline F32x8 Magnitude(F32x8 a) {
  return {_mm256_andnot_ps(_mm256_set1_ps(-0.0F), a.lanes)};
}

// ((0+4) + (2+6)) + ((1+5) + (3+7))
inline float ReduceSum(F32x8 a) {
  const __m128 four =
      _mm_add_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The largest lane; none may be NaN.
inline float ReduceMax(F32x8 a) {
  const __m128 four =
      _mm_max_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Eight consecutive values as float, exactly.
inline F32x8 Load8(const float* source) {
  return {_mm256_loadu_ps(source)};
}
inline F32x8 Load8(const Bf16* source) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
// e4m3 is read as a half float of the same sign, exponent and mantissa fields, whose exponent bias
// is larger by 8; half subnormals convert exactly and at full speed, unlike float ones.
inline F32x8 Load8(const Fp8E4m3* source) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(source));
  const __m128i high = _mm_unpacklo_epi8(_mm_setzero_si128(), bytes);  // byte << 8
  const __m128i spread = _mm_srai_epi16(high, 1);                      // sign twice, then 7 bits
  const __m128i magnitude = _mm_and_si128(spread, _mm_set1_epi16(0x3F80));
  const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x3F80));
  const __m128i half = _mm_and_si128(spread, _mm_set1_epi16(static_cast<short>(0xBFFF)));
  const __m128i bits = _mm_or_si128(half, _mm_and_si128(nan, _mm_set1_epi16(0x7E00)));
  return {_mm256_mul_ps(_mm256_cvtph_ps(bits), _mm256_set1_ps(256.0F))};
}

// Sixteen of them at once, as the eight are read; a NaN's exponent is the one that carries into the
// bit above it, which with the rest makes the half's largest exponent.
struct F32x8Pair {
  F32x8 low;
  F32x8 high;
};
inline F32x8Pair Load16(const Fp8E4m3* source) {
  const __m256i bytes =
      _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  const __m256i spread = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 1);
  const __m256i half = _mm256_and_si256(spread, _mm256_set1_epi16(static_cast<short>(0xBFFF)));
  const __m256i carried = _mm256_and_si256(_mm256_add_epi16(half, _mm256_set1_epi16(0x0080)),
                                           _mm256_set1_epi16(0x4000));
  const __m256i bits = _mm256_or_si256(half, carried);
  const __m256 rescale = _mm256_set1_ps(256.0F);
  return {{_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), rescale)},
          {_mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1)), rescale)}};
}

// Four values twice, and four or eight of one row beside as many of another, as float, exactly.
inline F32x8 LoadTwice4(const float* source) {
  return {_mm256_broadcast_ps(reinterpret_cast<const __m128*>(source))};
}
inline F32x8 Load4And4(const float* low, const float* high) {
  return {_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1)};
}
// low: the first four of each; high: the last four.
inline F32x8Pair Load8And8(const float* first, const float* second) {
  return {Load4And4(first, second), Load4And4(first + 4, second + 4)};
}
inline F32x8Pair Load8And8(const Bf16* first, const Bf16* second) {
  const __m256i bits = _mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(first))),
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(second)), 1);
  const __m256i zero = _mm256_setzero_si256();  // below the bits of each
  return {{_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, bits))},
          {_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, bits))}};
}

// Rounds to the element type of `target`, to nearest even, and stores eight values.
inline void Store8(float* target, F32x8 value) {
  _mm256_storeu_ps(target, value.lanes);
}
inline void Store8(Bf16* target, F32x8 value) {
  const __m256i bits = _mm256_castps_si256(value.lanes);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounding = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, rounding), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value.lanes, value.lanes, _CMP_UNORD_Q));
  const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, is_nan);
  const __m256i packed = _mm256_packus_epi32(chosen, chosen);  // within each 128-bit half
  const __m256i joined = _mm256_permute4x64_epi64(packed, 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_castsi256_si128(joined));
}

// target[j * target_stride + i] = source[i * source_stride + j] for eight rows and columns.
inline void Transpose8(const float* source, std::int64_t source_stride, float* target,
                       std::int64_t target_stride) {
  const auto half_rows = [&](std::int64_t row, std::int64_t column) {
    const float* const from = source + row * source_stride + column;
    return Load4And4(from, from + 4 * source_stride).lanes;
  };
  for (std::int64_t column = 0; column < kLanes; column += 4) {
    const __m256 row0 = half_rows(0, column);  // and row 4
    const __m256 row1 = half_rows(1, column);
    const __m256 row2 = half_rows(2, column);
    const __m256 row3 = half_rows(3, column);
    const __m256 low01 = _mm256_unpacklo_ps(row0, row1);
    const __m256 high01 = _mm256_unpackhi_ps(row0, row1);
    const __m256 low23 = _mm256_unpacklo_ps(row2, row3);
    const __m256 high23 = _mm256_unpackhi_ps(row2, row3);
    float* const to = target + column * target_stride;
    _mm256_storeu_ps(to, _mm256_shuffle_ps(low01, low23, 0x44));
    _mm256_storeu_ps(to + target_stride, _mm256_shuffle_ps(low01, low23, 0xEE));
    _mm256_storeu_ps(to + 2 * target_stride, _mm256_shuffle_ps(high01, high23, 0x44));
    _mm256_storeu_ps(to + 3 * target_stride, _mm256_shuffle_ps(high01, high23, 0xEE));
  }
}

// Four double lanes, for sums that must not round as floats do.
inline constexpr std::int64_t kDoubleLanes = 4;

struct F64x4 {
  __m256d lanes;

  static F64x4 Zero() { return {_mm256_setzero_pd()}; }
  static F64x4 All(double value) { return {_mm256_set1_pd(value)}; }
};
inline F64x4 operator+(F64x4 a, F64x4 b) {
  return {_mm256_add_pd(a.lanes, b.lanes)};
}
inline F64x4 operator*(F64x4 a, F64x4 b) {
  return {_mm256_mul_pd(a.lanes, b.lanes)};
}
inline F64x4 MultiplyAdd(F64x4 a, F64x4 b, F64x4 c) {
  return {_mm256_fmadd_pd(a.lanes, b.lanes, c.lanes)};
}
inline F64x4 Load4(const double* source) {
  return {_mm256_loadu_pd(source)};
}
inline F64x4 Load4(const float* source) {
  return {_mm256_cvtps_pd(_mm_loadu_ps(source))};
}
inline void Store4(double* target, F64x4 value) {
  _mm256_storeu_pd(target, value.lanes);
}
// (0 + 2) + (1 + 3)
inline double ReduceSum(F64x4 a) {
  const __m128d two =
      _mm_add_pd(_mm256_castpd256_pd128(a.lanes), _mm256_extractf128_pd(a.lanes, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// One value, as the eight-lane forms do it.
inline float LoadOne(const float* source) {
  return *source;
}
inline float LoadOne(const Bf16* source) {
  return ToFloat(*source);
}
inline float LoadOne(const Fp8E4m3* source) {
  return ToFloat(*source);
}
inline void StoreOne(float* target, float value) {
  *target = value;
}
inline void StoreOne(Bf16* target, float value) {
  *target = ToBf16(value);
}

}  // namespace dsa
