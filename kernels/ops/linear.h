// Linear projection:  y = x W^T, accumulated in float32 or better and rounded once to the type of
// y.
//
// CPU: the order of the sum over K is the same for any number of rows, so a row's bits do not
// depend on the rows beside it.  CUDA: the algorithm may follow the number of rows, so they may;
// within 4e-6 of float32 sums of 7168 terms.  y of float32 next to bfloat16 x serves the indexer's
// head weights and the logits.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

struct LinearParams {
  ConstAnyMatrix x;       // [T, K]  f32 or bf16
  ConstAnyMatrix weight;  // [N, K]  f32 or bf16
  AnyMatrix y;            // [T, N]  f32 or bf16; f64 (CPU): not rounded, this rank's part of it
};

struct LinearExtents {
  std::int64_t tokens;   // T, may be 0
  std::int64_t inputs;   // K
  std::int64_t outputs;  // N
};
LinearExtents Validate(const LinearParams& params);

}  // namespace dsa
