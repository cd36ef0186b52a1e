// Sums of a row as norms take them: at most 128 values in 8 lanes, longer rows as the sum of two
// halves.  It is the order of NumPy's pairwise summation (products rounded before they are added),
// so a norm has the bits of the numpy reference and no value next to a rounding border falls on
// the other side.  The error grows with the logarithm of the length.
#pragma once

#include "kernels/cpu/simd.h"

#include <cstdint>

namespace dsa::cpu {

inline constexpr std::int64_t kPairwiseBlock = 128;

// Sum of values[i], or of values[i]^2, over i in [0, count); count > 0 is a multiple of 8.
template <bool kSquares>
float PairwiseSum(const float* values, std::int64_t count) {
  if (count > kPairwiseBlock) {
    const std::int64_t half = count / 2 / kLanes * kLanes;
    return PairwiseSum<kSquares>(values, half) + PairwiseSum<kSquares>(values + half, count - half);
  }
  const auto term = [values](std::int64_t i) {
    const F32x8 value = Load8(values + i);
    return kSquares ? value * value : value;
  };
  F32x8 sum = term(0);
  for (std::int64_t i = kLanes; i < count; i += kLanes) {
    sum = sum + term(i);
  }
  float lanes[kLanes];
  Store8(lanes, sum);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
         ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

}  // namespace dsa::cpu
