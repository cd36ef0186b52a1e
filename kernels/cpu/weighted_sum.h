// Weighted sums of rows in float32, in one summation order whatever the tiling.
#pragma once

#include "kernels/cpu/dot.h"
#include "kernels/cpu/simd.h"

#include <algorithm>
#include <cstdint>

namespace dsa::cpu {

// Rows that are summed before their sum goes to the total: short chains round less.
inline constexpr std::int64_t kWeightedSumChunk = 64;

struct WeightedSumShape {
  std::int64_t rows;   // of weights and out
  std::int64_t terms;  // rows of b in a sum
  std::int64_t width;  // values of a row of b and out, % 8 == 0
  std::int64_t weight_stride;
  std::int64_t b_stride;
  std::int64_t out_stride;
};

// out[i, 0 .. 8 * kVectors) += sum of weights[i, j] * b[index(j)], first <= j < last, ascending.
template <int kRows, int kVectors, typename TB, typename Index>
inline void WeightedSumTile(const WeightedSumShape& shape, const float* weights, const TB* b,
                            Index index, std::int64_t first, std::int64_t last, float* out) {
  F32x8 sum[kRows][kVectors];
  for (auto& row : sum) {
    std::fill(row, row + kVectors, F32x8::Zero());
  }
  for (std::int64_t j = first; j < last; ++j) {
    const TB* const source = b + index(j) * shape.b_stride;
    F32x8 column[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      column[v] = Load8(source + v * kLanes);
    }
    for (int i = 0; i < kRows; ++i) {
      const F32x8 weight = F32x8::All(weights[i * shape.weight_stride + j]);
      for (int v = 0; v < kVectors; ++v) {
        sum[i][v] = MultiplyAdd(weight, column[v], sum[i][v]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      float* const target = out + i * shape.out_stride + v * kLanes;
      Store8(target, Load8(target) + sum[i][v]);
    }
  }
}

// out[i] += sum over j of weights[i, j] * b[index(j)], 64 terms at a time, ascending.  The bits do
// not depend on how many rows are summed together.
template <typename TB, typename Index>
inline void AddWeightedSum(const WeightedSumShape& shape, const float* weights, const TB* b,
                           Index index, float* out) {
  for (std::int64_t first = 0; first < shape.terms; first += kWeightedSumChunk) {
    const std::int64_t last = std::min(first + kWeightedSumChunk, shape.terms);
    std::int64_t row = 0;
    for (; row + 4 <= shape.rows; row += 4) {
      const float* const w = weights + row * shape.weight_stride;
      float* const target = out + row * shape.out_stride;
      std::int64_t d = 0;
      for (; d + 2 * kLanes <= shape.width; d += 2 * kLanes) {
        WeightedSumTile<4, 2>(shape, w, b + d, index, first, last, target + d);
      }
      for (; d < shape.width; d += kLanes) {
        WeightedSumTile<4, 1>(shape, w, b + d, index, first, last, target + d);
      }
    }
    for (; row < shape.rows; ++row) {
      const float* const w = weights + row * shape.weight_stride;
      float* const target = out + row * shape.out_stride;
      std::int64_t d = 0;
      for (; d + 8 * kLanes <= shape.width; d += 8 * kLanes) {
        WeightedSumTile<1, 8>(shape, w, b + d, index, first, last, target + d);
      }
      for (; d < shape.width; d += kLanes) {
        WeightedSumTile<1, 1>(shape, w, b + d, index, first, last, target + d);
      }
    }
  }
}

}  // namespace dsa::cpu
