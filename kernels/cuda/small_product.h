// fp8 block-scaled products of few rows: a decode step's, where reading the weight is the cost.
#pragma once

#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/linear.h"

#include <cstddef>
#include <span>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

inline constexpr std::size_t kSmallProductsMax = 4;  // of a launch

// Whether SmallProducts takes them: T <= 64, K and N multiples of 16, rows of x and of the weight
// 16-byte aligned, rows of y aligned to two elements.
bool SmallProductTakes(const BlockScaledLinearParams& params);

// Products of one x by up to kSmallProductsMax weights in one launch.  A row's bits depend on the
// row and the weights alone, those beside it included: K is split by the number of all their
// outputs.  No scratch; any stream, capture included.
//
// `narrow`, where it is not null, is a bfloat16 product of as many rows that NarrowProductTakes: it
// is computed beside them, K split as theirs.
void SmallProducts(std::span<const BlockScaledLinearParams> products, const LinearParams* narrow,
                   cudaStream_t stream);

}  // namespace dsa::cuda
