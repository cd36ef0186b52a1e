#include "kernels/cpu/matmul.h"

#include "common/check.h"
#include "kernels/cpu/rows.h"

#include <algorithm>

#include <immintrin.h>

namespace dsa {
namespace {

constexpr std::int64_t kBlock = 128;   // columns that share a scale, and the length of a chain
constexpr std::int64_t kRowTile = 48;  // rows of x that meet a decoded block of W
constexpr std::int64_t kGroup = 4;     // outputs that are computed together
static_assert(kBlock % kGroup == 0, "the outputs of a group share a scale");
constexpr std::int64_t kDoubleLanes = 4;
constexpr std::int64_t kRowsTogether = 3;  // 3 x 4 sums, 4 weights or inputs: the 16 registers

constexpr std::int64_t CeilDivide(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
constexpr std::int64_t Padded(std::int64_t columns) {
  return CeilDivide(columns, kDoubleLanes) * kDoubleLanes;
}

// One block of a tile: sums[r][n] += x[r] . w[n].
struct BlockTask {
  const float* inputs;  // [rows, input_stride]
  std::int64_t input_stride;
  const double* weights;  // [kGroup, kBlock]
  std::int64_t columns;   // of this block, a multiple of kDoubleLanes
  double* sums;           // [rows, kGroup, kDoubleLanes]
};

// The loops over rows and outputs are unrolled, so that every sum has a register.
template <int kRows>
void AddBlock(const BlockTask& task, std::int64_t row) {
  double* const sums = task.sums + row * kGroup * kDoubleLanes;
  __m256d sum[kRows][kGroup];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kGroup; ++n) {
      sum[r][n] = _mm256_loadu_pd(sums + (r * kGroup + n) * kDoubleLanes);
    }
  }
  const float* inputs = task.inputs + row * task.input_stride;
  for (std::int64_t k = 0; k < task.columns; k += kDoubleLanes) {
    __m256d x[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      x[r] = _mm256_cvtps_pd(_mm_loadu_ps(inputs + r * task.input_stride + k));
    }
#pragma GCC unroll 4
    for (int n = 0; n < kGroup; ++n) {
      const __m256d weight = _mm256_loadu_pd(task.weights + n * kBlock + k);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        sum[r][n] = _mm256_fmadd_pd(x[r], weight, sum[r][n]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kGroup; ++n) {
      _mm256_storeu_pd(sums + (r * kGroup + n) * kDoubleLanes, sum[r][n]);
    }
  }
}

void AddBlockAllRows(const BlockTask& task, std::int64_t rows) {
  std::int64_t row = 0;
  for (; row + kRowsTogether <= rows; row += kRowsTogether) {
    AddBlock<kRowsTogether>(task, row);
  }
  if (rows - row == 2) {
    AddBlock<2>(task, row);
  } else if (rows - row == 1) {
    AddBlock<1>(task, row);
  }
}

// Rows [first, first + count) of x, times their scales: each product rounded to float32.  Padded
// with zeros to whole lanes.
void DecodeInputs(const MatmulProblem& problem, std::int64_t first, std::int64_t count,
                  float* target) {
  const MatmulRows& x = problem.x;
  const std::int64_t stride = Padded(problem.inputs);
  for (std::int64_t r = 0; r < count; ++r) {
    const std::int64_t row = x.indices == nullptr ? first + r : x.indices[first + r];
    float* const values = target + r * stride;
    LoadRow(Offset(x.data, x.type, row * x.row_stride), x.type, problem.inputs, values);
    std::fill(values + problem.inputs, values + stride, 0.0F);
    if (x.scales != nullptr) {
      for (std::int64_t k = 0; k < problem.inputs; ++k) {
        values[k] *= x.scales[row * x.scale_stride + k / kBlock];
      }
    }
  }
}

// Columns [column, column + width) of outputs [output, output + kGroup), times their scale: each
// product rounded to float32.  Zeros beyond the last.
void DecodeWeights(const MatmulProblem& problem, std::int64_t output, std::int64_t column,
                   double* target) {
  const MatmulRows& weight = problem.weight;
  const std::int64_t width = std::min(kBlock, problem.inputs - column);
  const float scale = weight.scales == nullptr
                          ? 1.0F
                          : weight.scales[output / kBlock * weight.scale_stride + column / kBlock];
  const __m128 scales = _mm_set1_ps(scale);
  for (std::int64_t n = 0; n < kGroup; ++n) {
    float values[kBlock];
    std::int64_t filled = 0;
    if (output + n < problem.outputs) {
      LoadRow(Offset(weight.data, weight.type, (output + n) * weight.row_stride + column),
              weight.type, width, values);
      filled = width;
    }
    std::fill(values + filled, values + Padded(width), 0.0F);
    for (std::int64_t k = 0; k < Padded(width); k += kDoubleLanes) {
      _mm256_storeu_pd(target + n * kBlock + k,
                       _mm256_cvtps_pd(_mm_mul_ps(_mm_loadu_ps(values + k), scales)));
    }
  }
}

// values[n] is that of output + n.
void StoreValues(const MatmulProblem& problem, std::int64_t row, std::int64_t output,
                 const float* values) {
  const std::int64_t target_row = problem.y_indices == nullptr ? row : problem.y_indices[row];
  const std::int64_t count = std::min(kGroup, problem.outputs - output);
  void* target = Offset(problem.y, problem.y_type, target_row * problem.y_row_stride + output);
  for (std::int64_t n = 0; n < count; ++n) {
    if (problem.y_type == DataType::kF32) {
      static_cast<float*>(target)[n] = values[n];
    } else {
      static_cast<Bf16*>(target)[n] = ToBf16(values[n]);
    }
  }
}

struct InputTile {
  std::int64_t first_row;
  std::int64_t rows;
};

// kGroup outputs of a tile whose inputs are decoded.
void RunGroup(const MatmulProblem& problem, const InputTile& tile, std::int64_t output,
              const MatmulScratch& scratch) {
  double sums[kRowTile * kGroup * kDoubleLanes];
  std::fill_n(sums, tile.rows * kGroup * kDoubleLanes, 0.0);
  double weights[kGroup * kBlock];
  for (std::int64_t column = 0; column < problem.inputs; column += kBlock) {
    DecodeWeights(problem, output, column, weights);
    AddBlockAllRows({.inputs = scratch.inputs.data() + column,
                     .input_stride = Padded(problem.inputs),
                     .weights = weights,
                     .columns = Padded(std::min(kBlock, problem.inputs - column)),
                     .sums = sums},
                    tile.rows);
  }
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    float values[kGroup];
    for (std::int64_t n = 0; n < kGroup; ++n) {
      const double* const lanes = sums + (r * kGroup + n) * kDoubleLanes;
      values[n] = static_cast<float>((lanes[0] + lanes[2]) + (lanes[1] + lanes[3]));
    }
    StoreValues(problem, tile.first_row + r, output, values);
  }
}

}  // namespace

std::int64_t MatmulUnits(const MatmulProblem& problem) {
  return CeilDivide(problem.rows, kRowTile) * CeilDivide(problem.outputs, kGroup);
}

void RunMatmulUnits(const MatmulProblem& problem, std::int64_t first, std::int64_t last,
                    const MatmulScratch& scratch) {
  DSA_CHECK(kRowTile * Padded(problem.inputs) <= scratch.inputs.size(),
            "matrix product: K={} exceeds the scratch, sized for {}", problem.inputs,
            scratch.inputs.size() / kRowTile);
  const std::int64_t groups = CeilDivide(problem.outputs, kGroup);
  InputTile tile{.first_row = -1, .rows = 0};
  for (std::int64_t unit = first; unit < last; ++unit) {
    const std::int64_t first_row = unit / groups * kRowTile;
    if (first_row != tile.first_row) {
      tile = {.first_row = first_row, .rows = std::min(kRowTile, problem.rows - first_row)};
      DecodeInputs(problem, tile.first_row, tile.rows, scratch.inputs.data());
    }
    RunGroup(problem, tile, unit % groups * kGroup, scratch);
  }
}

MatmulScratch MakeMatmulScratch(std::int64_t inputs_max, ScratchMaker& maker) {
  MatmulScratch scratch;
  scratch.inputs = maker.Array<float>(kRowTile * Padded(inputs_max));
  return scratch;
}

}  // namespace dsa
