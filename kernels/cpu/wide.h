// Weights as doubles, in vectors of four lanes, without a detour through memory.
#pragma once

#include "kernels/cpu/simd.h"

#include <cstdint>

#include <immintrin.h>

namespace dsa::cpu {

inline constexpr std::int64_t kWideValues = 32;  // that are widened at a time

// The functions below call body(i, quad) for i = 0 .. 7, where quad holds values 4 i .. 4 i + 3.

template <typename Body>
inline void WidenEight(F32x8 values, std::int64_t first, const Body& body) {
  body(first, F64x4{_mm256_cvtps_pd(_mm256_castps256_ps128(values.lanes))});
  body(first + 1, F64x4{_mm256_cvtps_pd(_mm256_extractf128_ps(values.lanes, 1))});
}

// Float32 and bfloat16.
template <typename T, typename Body>
inline void Widen(const T* source, const Body& body) {
  WidenEight(Load8(source), 0, body);
  WidenEight(Load8(source + kLanes), 2, body);
  WidenEight(Load8(source + 2 * kLanes), 4, body);
  WidenEight(Load8(source + 3 * kLanes), 6, body);
}

// fp8 times `scale`, each product rounded to float32.
template <typename Body>
inline void WidenScaled(const Fp8E4m3* source, F32x8 scale, const Body& body) {
  const F32x8Pair first = Load16(source);
  WidenEight(first.low * scale, 0, body);
  WidenEight(first.high * scale, 2, body);
  const F32x8Pair second = Load16(source + 2 * kLanes);
  WidenEight(second.low * scale, 4, body);
  WidenEight(second.high * scale, 6, body);
}

// Whether none of `count` values, a multiple of 32, is zero, subnormal or NaN.
inline bool AllNormal(const Fp8E4m3* source, std::int64_t count) {
  __m256i outside = _mm256_setzero_si256();  // the top bit of a byte
  for (std::int64_t i = 0; i < count; i += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i));
    const __m256i magnitude = _mm256_and_si256(bytes, _mm256_set1_epi8(0x7F));
    const __m256i below = _mm256_sub_epi8(magnitude, _mm256_set1_epi8(8));
    const __m256i above = _mm256_add_epi8(magnitude, _mm256_set1_epi8(1));
    outside = _mm256_or_si256(outside, _mm256_or_si256(below, above));
  }
  return _mm256_movemask_epi8(outside) == 0;
}

// What WidenNormal needs in registers or memory; GCC would make each of them anew where it sees
// their values.
struct WidenTables {
  __m256i order;
  __m256i upper_bytes;
  __m256i low_nibbles;
  __m256i top_bits;
  __m256i upper_of_two;
  __m256i upper_of_four;
};
extern const WidenTables kWidenTables;

// Normal fp8 values, exactly.  The upper sixteen bits of such a double are its sign, its exponent
// rebiased from 7 to 1023 and its mantissa, and the rest is zero: two bytes are computed for each
// value and then moved to where they belong.
template <typename Body>
inline void WidenNormal(const Fp8E4m3* source, const Body& body) {
  const WidenTables& tables = kWidenTables;
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  const __m256i ordered = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(bytes, tables.order), 0xD8);
  const __m256i upper = _mm256_shuffle_epi8(
      tables.upper_bytes, _mm256_and_si256(_mm256_srli_epi16(ordered, 4), tables.low_nibbles));
  const __m256i lower = _mm256_xor_si256(_mm256_add_epi8(ordered, ordered), tables.top_bits);
  const auto sixteen = [&](__m256i values, std::int64_t first) {
    const __m256i even = _mm256_slli_epi32(values, 16);
    const __m256i odd = _mm256_and_si256(values, tables.upper_of_two);
    body(first, F64x4{_mm256_castsi256_pd(_mm256_slli_epi64(even, 32))});
    body(first + 1, F64x4{_mm256_castsi256_pd(_mm256_and_si256(even, tables.upper_of_four))});
    body(first + 2, F64x4{_mm256_castsi256_pd(_mm256_slli_epi64(odd, 32))});
    body(first + 3, F64x4{_mm256_castsi256_pd(_mm256_and_si256(odd, tables.upper_of_four))});
  };
  sixteen(_mm256_unpacklo_epi8(lower, upper), 0);
  sixteen(_mm256_unpackhi_epi8(lower, upper), 4);
}

}  // namespace dsa::cpu
