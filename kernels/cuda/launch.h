// Checks of CUDA calls.  An asynchronous CUDA error poisons the context for good, so there is
// nothing to hand back: it is fatal, like any failed check.
#pragma once

#include "common/check.h"

#include <string_view>

#include <cuda_runtime_api.h>

#define DSA_CUDA_CHECK(call)                                          \
  do {                                                                \
    const cudaError_t dsa_cuda_status = (call);                       \
    DSA_CHECK(dsa_cuda_status == cudaSuccess, "{}",                   \
              std::string_view(cudaGetErrorString(dsa_cuda_status))); \
  } while (false)

namespace dsa::cuda {

// Of an H100 or H200.  Only the shape of a grid may depend on it, no result.
inline constexpr int kMultiprocessors = 132;

}  // namespace dsa::cuda
