// bf16 products of few rows and few outputs: the indexer's head weights and the like, where neither
// bytes nor arithmetic count but the time until the first and after the last of them.
#pragma once

#include "kernels/ops/linear.h"

#include <cuda_runtime_api.h>

namespace dsa::cuda {

// Whether NarrowProduct takes it: bf16 x and weight, T <= 64, N a multiple of 16 up to 256, K a
// multiple of 32, rows of both 16-byte aligned.
bool NarrowProductTakes(const LinearParams& params);

// A row's bits depend on the row and the weight alone.  No scratch; any stream, capture included.
void NarrowProduct(const LinearParams& params, cudaStream_t stream);

}  // namespace dsa::cuda
