// One tile of y = x W^T in float32 without tensor cores, for any mix of element types and strides:
// 64 rows of W by 16 rows of x, by one block of 256 threads, four results a thread.
//
// 32 columns at a time are added up before they join the total, which keeps the chains of float32
// sums short.  A result's bits depend on its two rows alone.
#pragma once

#include "kernels/cuda/element.cuh"

#include <cstdint>

namespace dsa::cuda {

// Strides are in elements: of W between rows and between columns.
template <typename X, typename W>
struct PlainTile {
  const W* weight;
  std::int64_t weight_stride;
  std::int64_t weight_column_stride;
  int weight_rows;             // at most 64
  const X* x;                  // row 0 of the matrix
  std::int64_t x_stride;       //
  const std::int32_t* x_rows;  // as in RowTile
  int tokens;                  // at most 16
  int columns;
};

template <typename X, typename W>
struct PlainProduct {
  static constexpr int kThreads = 256;
  static constexpr int kWeightRows = 64;
  static constexpr int kTokens = 16;
  static constexpr int kColumns = 32;
  static constexpr int kStride = kColumns + 1;
  struct Shared {
    float weight[kWeightRows][kStride];
    float x[kTokens][kStride];
  };

  // store(token, weight_row, value) as in RowProduct.
  template <typename Store>
  __device__ static void Run(Shared& shared, const PlainTile<X, W>& tile, const Store& store) {
    const int thread = static_cast<int>(threadIdx.x);
    const int row = thread % kWeightRows;
    const int first_token = thread / kWeightRows;  // and every fourth after it
    constexpr int kResults = kTokens * kWeightRows / kThreads;
    float totals[kResults] = {};
    const bool by_rows = tile.weight_column_stride != 1;  // adjacent rows lie together
    for (int first = 0; first < tile.columns; first += kColumns) {
      for (int i = thread; i < kWeightRows * kColumns; i += kThreads) {
        const int r = by_rows ? i % kWeightRows : i / kColumns;
        const int c = by_rows ? i / kWeightRows : i % kColumns;
        shared.weight[r][c] =
            r < tile.weight_rows && first + c < tile.columns
                ? ToFloat(
                      tile.weight[r * tile.weight_stride + (first + c) * tile.weight_column_stride])
                : 0.0F;
      }
      for (int i = thread; i < kTokens * kColumns; i += kThreads) {
        const int t = i / kColumns;
        const int c = i % kColumns;
        float value = 0.0F;
        if (t < tile.tokens && first + c < tile.columns) {
          const std::int64_t x_row = tile.x_rows == nullptr ? t : tile.x_rows[t];
          value = ToFloat(tile.x[x_row * tile.x_stride + first + c]);
        }
        shared.x[t][c] = value;
      }
      __syncthreads();
      float sums[kResults] = {};
#pragma unroll 8
      for (int c = 0; c < kColumns; ++c) {
        const float weight = shared.weight[row][c];
#pragma unroll
        for (int i = 0; i < kResults; ++i) {
          sums[i] = fmaf(weight, shared.x[first_token + i * 4][c], sums[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kResults; ++i) {
        totals[i] += sums[i];
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kResults; ++i) {
      const int token = first_token + i * 4;
      if (token < tile.tokens && row < tile.weight_rows) {
        store(token, row, totals[i]);
      }
    }
  }
};

}  // namespace dsa::cuda
