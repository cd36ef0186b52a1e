// Tensor maps of fp8 weights, through which the copy engine brings tiles to shared memory.
#pragma once

#include "common/numeric.h"
#include "common/view.h"

#include <cuda.h>

namespace dsa::cuda {

// Boxes of `box_rows` rows by 128 columns, in the 128-byte swizzle; what lies beyond the weight
// comes as zeros.  Rows must be 16-byte aligned.  The encoding takes under a microsecond.
CUtensorMap WeightMap(const Matrix<const Fp8E4m3>& weight, int box_rows);

}  // namespace dsa::cuda
