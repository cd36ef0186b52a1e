// FillRandom: nearly normal values that depend on the seed and their index alone; weights where
// there is no checkpoint.
//
//   x[i] = round(fma(n(seed, j), deviation * sqrt(3) / 65536, mean))
//
// j is i, or where x is rows and columns cut from a larger matrix, the place there: so ranks get
// the values that one rank has.
//
// n, an integer, is the sum of the four 16-bit parts of CounterBits(seed, i), less their mean; its
// deviation is 65536 / sqrt(3).  With one rounding to float32 and one to the type, the bits are the
// same on every backend.
#pragma once

#include "common/prng.h"
#include "common/view.h"

#include <cstdint>

namespace dsa {

// Where `data` lies in a row-major matrix: rows of `cols` values, `stride` apart there.
struct FillPlace {
  std::int64_t first = 0;  // place of data[0]
  std::int64_t cols = 1;   // > 0
  std::int64_t stride = 1;

  constexpr std::int64_t Of(std::int64_t i) const { return first + i / cols * stride + i % cols; }
};

struct FillRandomParams {
  void* data;  // [size]  f32, bf16 or fp8, written
  DataType type;
  std::int64_t size;  // may be 0
  std::uint64_t seed;
  float mean;
  float deviation;  // >= 0
  FillPlace place{};
};

// CHECK-fails on a negative size and a mean or deviation that is not finite.  Returns the factor of
// n.
float Validate(const FillRandomParams& params);

// n(seed, index), in [-131070, 131070].
constexpr std::int32_t RandomSum(std::uint64_t seed, std::int64_t index) {
  constexpr std::int32_t kMean = 2 * 65535;
  const std::uint64_t bits = CounterBits(seed, static_cast<std::uint64_t>(index));
  const std::uint64_t sum =
      (bits & 0xFFFFU) + ((bits >> 16) & 0xFFFFU) + ((bits >> 32) & 0xFFFFU) + (bits >> 48);
  return static_cast<std::int32_t>(sum) - kMean;
}

}  // namespace dsa
