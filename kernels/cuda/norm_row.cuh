// One row through RMSNorm and its fp8 copy, in registers, by a block of kThreads threads:
//
//   row   | 0..7 | 8..15 | ...      pack i of thread t holds values 8 (t + i kThreads) and on
//
// 16 threads hold a block of 128 columns and quantize it together.  The sums have RmsNorm's order
// where kThreads are its threads, or where a row needs fewer.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/quantize_fp8.cuh"
#include "kernels/ops/quantize_fp8.h"

#include <cstdint>

namespace dsa::cuda {

template <typename T, int kThreads, int kPacks>
class NormRow final {
 public:
  static constexpr int kWidth = kQuantizeWidth;
  static constexpr std::int64_t kColumnsMax = std::int64_t{kThreads} * kPacks * kWidth;

  // Reads the norm's weight, which no kernel writes: before WaitForPredecessors.  `cols` is a
  // multiple of 8, at most kColumnsMax.
  __device__ NormRow(const float* weight, std::int64_t cols) : cols_(static_cast<int>(cols)) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (Column(i) < cols_) {
        weight_[i] = LoadPack<kWidth>(weight + Column(i));
      }
    }
  }

  // y = norm(x + residual), residual = x + residual where it is not null, and y's fp8 copy in row
  // `row` of `fp8` where it has values.  x and y may be the same.  Every thread calls it.  A
  // rehearsal goes through the same instructions and reads and writes no row.
  __device__ void Run(const T* x, T* residual, float eps, T* y, const QuantizedView& fp8,
                      std::int64_t row, bool is_rehearsal = false) const {
    const int end = is_rehearsal ? 0 : cols_;
    // All reads before the first write, which they might alias for all that the compiler knows.
    Pack<T, kWidth> packed[kPacks] = {};
    Pack<T, kWidth> added[kPacks] = {};
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (Column(i) < end) {
        packed[i] = LoadPack<kWidth>(x + Column(i));
        if (residual != nullptr) {
          added[i] = LoadPack<kWidth>(residual + Column(i));
        }
      }
    }
    float h[kPacks][kWidth];
    float sum_of_squares = 0.0F;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        h[i][j] = ToFloat(packed[i].values[j]);
        if (residual != nullptr) {
          h[i][j] += ToFloat(added[i].values[j]);
          added[i].values[j] = FromFloat<T>(h[i][j]);
        }
        sum_of_squares += h[i][j] * h[i][j];
      }
      if (residual != nullptr && Column(i) < end) {
        StorePack(residual + Column(i), added[i]);
      }
    }
    const float mean = BlockSum<kThreads>(sum_of_squares) / static_cast<float>(cols_);
    const float scale = 1.0F / sqrtf(mean + eps);
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (i * kThreads * kWidth < cols_) {  // of the block: all lanes quantize together
        Store(h[i], scale, weight_[i], Column(i), end, y, fp8, row);
      }
    }
  }

 private:
  __device__ static int Column(int pack) {
    return (static_cast<int>(threadIdx.x) + pack * kThreads) * kWidth;
  }

  __device__ void Store(const float (&h)[kWidth], float scale, const Pack<float, kWidth>& weight,
                        int column, int end, T* y, const QuantizedView& fp8,
                        std::int64_t row) const {
    const bool exists = column < end;
    Pack<T, kWidth> normed;
    float values[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      normed.values[i] = FromFloat<T>(exists ? h[i] * scale * weight.values[i] : 0.0F);
      values[i] = ToFloat(normed.values[i]);
    }
    if (exists) {
      StorePack(y + column, normed);
    }
    if (fp8.values.data == nullptr) {
      return;
    }
    float block_scale = 0.0F;
    const auto quantized = QuantizeBlock(values, fp8.format, block_scale);
    if (exists) {
      StorePack(fp8.values.Row(row) + column, quantized);
      if (threadIdx.x % kQuantizeLanes == 0) {
        fp8.scales.Row(row)[column / kValuesPerScale] = block_scale;
      }
    }
  }

  int cols_;
  Pack<float, kWidth> weight_[kPacks];
};

}  // namespace dsa::cuda
