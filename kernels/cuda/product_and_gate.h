// The gate of a layer beside fp8 products of the same rows: gate and up of its shared expert.
#pragma once

#include "kernels/cuda/few_gate.h"
#include "kernels/cuda/small_product.h"

#include <span>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

// Whether ProductsAndGate computes them in one launch: what FewGate and SmallProducts take, 17 to
// 64 rows, and as many tiles of products as give each part of the gate a block, all there at once.
bool ProductsAndGateTake(std::span<const BlockScaledLinearParams> products, const GateParams& gate);

// Each row's bits are those of SmallProducts and FewGate.  Any stream, capture included.
void ProductsAndGate(std::span<const BlockScaledLinearParams> products, const FewGateCall& gate,
                     cudaStream_t stream);

}  // namespace dsa::cuda
