// Tensor maps, through which the copy engine brings tiles to shared memory.
#pragma once

#include "common/numeric.h"
#include "common/view.h"

#include <cstdint>
#include <span>

#include <cuda.h>

namespace dsa::cuda {

// Boxes of `box_rows` rows by 128 columns, in the 128-byte swizzle; what lies beyond the weight
// comes as zeros.  Rows must be 16-byte aligned.  The encoding takes under a microsecond.
CUtensorMap WeightMap(const Matrix<const Fp8E4m3>& weight, int box_rows);

// One axis of an array: how many indices, elements from one to the next, and how many a box has.
struct MapAxis {
  std::int64_t extent;
  std::int64_t stride;
  int box;
};
// The same of up to five axes of bfloat16, the first contiguous and 64 wide in a box.  Strides of
// the others are multiples of 16 bytes, in any order; axes may overlap.
CUtensorMap Bf16Map(const void* data, std::span<const MapAxis> axes);
// Of e4m3, the first axis 128 wide in a box.
CUtensorMap Fp8Map(const void* data, std::span<const MapAxis> axes);

}  // namespace dsa::cuda
