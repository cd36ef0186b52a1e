// fp8 block-scaled products of few rows: a decode step's, where reading the weight is the cost.
#pragma once

#include "kernels/ops/block_scaled_linear.h"

#include <cuda_runtime_api.h>

namespace dsa::cuda {

// Whether SmallProduct takes them: T <= 64, K a multiple of 128, N of 16, rows of x and of the
// weight 16-byte aligned, rows of y aligned to two elements.
bool SmallProductTakes(const BlockScaledLinearParams& params);

// A row's bits depend on the row and the weight alone.  No scratch; any stream, capture included.
void SmallProduct(const BlockScaledLinearParams& params, cudaStream_t stream);

}  // namespace dsa::cuda
