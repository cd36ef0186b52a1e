// IndexerLogits of the fp8 format, called by the op for that format.
#pragma once

#include "kernels/ops/indexer_logits.h"

#include <cuda_runtime_api.h>

namespace dsa::cuda {

// `params` has been validated and has at least one row.
void IndexerLogitsFp8(const IndexerLogitsParams& params, cudaStream_t stream);

}  // namespace dsa::cuda
