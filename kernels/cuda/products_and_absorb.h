// The products of attention's and the indexer's queries with W_UK behind the first, of a decode
// step's rows, in one launch.
#pragma once

#include "kernels/ops/absorb_query.h"
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/rope.h"

#include <cuda_runtime_api.h>

namespace dsa::cuda {

struct ProductsAndAbsorbParams {
  BlockScaledLinearParams query;        // y: heads of 128 + 64 columns
  BlockScaledLinearParams index_query;  // of the same x; 64 outputs for each head of `query`
  RopeParams rope;                      // of the last 64 columns of each head
  AbsorbQueryParams absorb;             // of the first 128
};
// Whether it takes them: T <= 64, K of whole blocks up to 1,536; bf16 outputs and W_UK, rows
// aligned to 16 bytes; interleaved RoPE.
bool TakesProductsAndAbsorb(const ProductsAndAbsorbParams& params);
// Whether it is faster than the products alone and absorption elsewhere.
bool IsBetterAtProductsAndAbsorb(const ProductsAndAbsorbParams& params);
// The products have the bits of SmallProducts where those split no K.  No scratch; any stream,
// capture included.
void ProductsAndAbsorb(const ProductsAndAbsorbParams& params, cudaStream_t stream);

}  // namespace dsa::cuda
