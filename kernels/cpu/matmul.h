// The one matrix product of the CPU backend:  y = x W^T, for any mix of element types.
//
// Sums are taken in double: lane l of 4 adds the products of columns l, l + 4, ... in turn, then
// (0 + 2) + (1 + 3).  fp8 values are multiplied by their scales first, each product rounded to
// float32.  So a result differs from the exact one by a single rounding to float32, and next to
// none rounds to another bfloat16 or fp8 value than with any other careful implementation.
//
// The order is the same for every (row, output), whatever stands beside it.
#pragma once

#include "common/view.h"
#include "kernels/cpu/cpu_level.h"
#include "kernels/cpu/scratch.h"

#include <cstdint>

namespace dsa {

// Rows of x or W.  Scales are null except for fp8.
struct MatmulRows {
  const void* data;
  DataType type;
  std::int64_t row_stride;  // in elements
  // Of x: [row, ceil(K / 128)]; of W: [ceil(row / 128), ceil(K / 128)].
  const float* scales = nullptr;
  std::int64_t scale_stride = 0;
  const std::int32_t* indices = nullptr;  // row i is row indices[i] of data; null: row i
};

struct MatmulProblem {
  MatmulRows x;
  MatmulRows weight;  // indices are null
  void* y;            // f32 or bf16; f64: a sum that is not rounded
  DataType y_type;
  std::int64_t y_row_stride;
  const std::int32_t* y_indices = nullptr;  // result row i is row y_indices[i] of y; null: row i
  std::int64_t rows;                        // T
  std::int64_t inputs;                      // K
  std::int64_t outputs;                     // N
};

// A problem is cut into units, which threads compute in any order: a tile of rows by a few outputs.
std::int64_t MatmulUnits(const MatmulProblem& problem);
void RunMatmulUnits(const MatmulProblem& problem, std::int64_t first, std::int64_t last,
                    const MatmulScratch& scratch, cpu::CpuLevel level = cpu::MachineLevel());

// Scratch of one thread for problems of up to `inputs_max` columns.
MatmulScratch MakeMatmulScratch(std::int64_t inputs_max, ScratchMaker& maker);

}  // namespace dsa
