// The inner part of the matrix product: a block of columns of a few outputs meets a tile of rows.
//
//   sums[r][n][k % 4] += x[r, k] * W[n, k]        k ascending, in double
//
// One form for each level of the CPU, all with the same bits.
#pragma once

#include "common/numeric.h"
#include "kernels/cpu/cpu_level.h"
#include "kernels/cpu/prefetch.h"

#include <cstdint>

namespace dsa::cpu {

inline constexpr std::int64_t kScaleBlock = 128;  // columns and outputs that share a scale
inline constexpr int kOutputGroup = 8;            // outputs that are computed together

// Weights of a group's outputs from the block's first column on; all rows can be read up to a
// multiple of kWideValues.
template <typename T>
struct WeightBlock {
  const T* rows[kOutputGroup];  // beyond the last output, the last again
  std::int64_t outputs;         // 1 .. kOutputGroup
  float scale;                  // fp8: each product with it is rounded to float32, if it is not 1
  std::int64_t ahead;           // the weights so many elements further will be read soon
};

struct BlockTask {
  const double* inputs;  // [rows, input_stride]
  std::int64_t input_stride;
  std::int64_t rows;
  std::int64_t columns;  // of this block, a multiple of kWideValues
  double* sums;          // [rows, kOutputGroup, kDoubleLanes], on 64 bytes
};

void AddBlockAvx2(const WeightBlock<float>& weights, const BlockTask& task);
void AddBlockAvx2(const WeightBlock<Bf16>& weights, const BlockTask& task);
void AddBlockAvx2(const WeightBlock<Fp8E4m3>& weights, const BlockTask& task);

void AddBlockAvx512(const WeightBlock<float>& weights, const BlockTask& task);
void AddBlockAvx512(const WeightBlock<Bf16>& weights, const BlockTask& task);
void AddBlockAvx512(const WeightBlock<Fp8E4m3>& weights, const BlockTask& task);

template <typename T>
void AddBlock(CpuLevel level, const WeightBlock<T>& weights, const BlockTask& task) {
  if (level == CpuLevel::kAvx512) {
    AddBlockAvx512(weights, task);
  } else {
    AddBlockAvx2(weights, task);
  }
}

}  // namespace dsa::cpu
