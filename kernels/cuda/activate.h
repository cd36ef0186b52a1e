// What lies between gate and up of an MLP and its down: SwiGLU of few rows and the fp8 copy that
// down reads (activate.cuh).
#pragma once

#include "kernels/kv_layout.h"
#include "kernels/ops/quantize_fp8.h"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

struct ActivateParams {
  ConstAnyMatrix gate;  // [T, I]
  ConstAnyMatrix up;    // [T, I]
  QuantizedView y;      // [T, I]

  __host__ __device__ std::int64_t blocks() const {  // of 128 columns
    return (gate.cols + kValuesPerScale - 1) / kValuesPerScale;
  }
  __host__ __device__ std::int64_t tasks() const { return gate.rows * blocks(); }
};

// Whether Activate takes them: some rows, of columns that are a multiple of 8.
bool ActivateTakes(const ActivateParams& params);
// Any stream, capture included.
void Activate(const ActivateParams& params, cudaStream_t stream);

}  // namespace dsa::cuda
