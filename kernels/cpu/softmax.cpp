#include "kernels/cpu/softmax.h"

#include "kernels/cpu/exp.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"

#include <algorithm>
#include <limits>

namespace dsa::cpu {
namespace {

constexpr std::int64_t kSumChunk = 64;

}  // namespace

// The sum of a chunk is float32, eight lanes joined by ReduceSum; chunk sums are added in double,
// so that a long context loses nothing.
void Softmax(float* values, std::int64_t count, DataType type) {
  const std::int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  std::fill(values + count, values + padded, -std::numeric_limits<float>::infinity());
  F32x8 largest = F32x8::All(-std::numeric_limits<float>::infinity());
  for (std::int64_t j = 0; j < padded; j += kLanes) {
    largest = MaxSkippingNan(Load8(values + j), largest);
  }
  const F32x8 shift = F32x8::All(ReduceMax(largest));
  double total = 0.0;
  for (std::int64_t first = 0; first < padded; first += kSumChunk) {
    F32x8 sum = F32x8::Zero();
    for (std::int64_t j = first; j < std::min(first + kSumChunk, padded); j += kLanes) {
      const F32x8 power = ExpNonPositive(Load8(values + j) - shift);
      Store8(values + j, power);
      sum = sum + power;
    }
    total += static_cast<double>(ReduceSum(sum));
  }
  const F32x8 divisor = F32x8::All(static_cast<float>(total));
  for (std::int64_t j = 0; j < padded; j += kLanes) {
    Store8(values + j, Load8(values + j) / divisor);
  }
  RoundRow(values, count, type);
}

}  // namespace dsa::cpu
