// The exponential of softmax, four doubles at a time.
#pragma once

#include <initializer_list>

#include <immintrin.h>

namespace dsa::cpu {

// e^x for x <= 0 within 1e-12 of itself; 0 below -700; NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts so that r loses nothing; e^r by its Taylor
// polynomial of degree 10, whose remainder is below 3e-13 there.
inline __m256d ExpNonPositive(__m256d x) {
  const __m256d smallest = _mm256_set1_pd(-700.0);
  const __m256d clamped = _mm256_max_pd(smallest, x);  // the second operand where either is NaN
  const __m256d n = _mm256_round_pd(_mm256_mul_pd(clamped, _mm256_set1_pd(1.4426950408889634)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256d r = _mm256_fnmadd_pd(n, _mm256_set1_pd(0.693147180369123816490), clamped);
  r = _mm256_fnmadd_pd(n, _mm256_set1_pd(1.90821492927058770002e-10), r);
  __m256d p = _mm256_set1_pd(1.0 / 3628800.0);
  for (const double coefficient : {1.0 / 362880.0, 1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0,
                                   1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0}) {
    p = _mm256_fmadd_pd(p, r, _mm256_set1_pd(coefficient));
  }
  const __m256i power = _mm256_slli_epi64(
      _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n)), _mm256_set1_epi64x(1023)), 52);
  const __m256d result = _mm256_mul_pd(p, _mm256_castsi256_pd(power));
  const __m256d below = _mm256_cmp_pd(x, smallest, _CMP_LT_OQ);
  const __m256d nan = _mm256_cmp_pd(x, x, _CMP_UNORD_Q);
  return _mm256_blendv_pd(_mm256_andnot_pd(below, result), x, nan);
}

}  // namespace dsa::cpu
