// Checks of CUDA calls.  An asynchronous CUDA error poisons the context for good, so there is
// nothing to hand back: the device has failed, and with it the process.
#pragma once

#include "common/check.h"
#include "kernels/device_failure.h"

#include <string>

#include <cuda_runtime_api.h>

#define DSA_CUDA_CHECK(call)                                                            \
  do {                                                                                  \
    const cudaError_t dsa_cuda_status = (call);                                         \
    if (dsa_cuda_status != cudaSuccess) [[unlikely]] {                                  \
      ::dsa::cuda::CallFailed(cudaGetErrorString(dsa_cuda_status), __FILE__, __LINE__); \
    }                                                                                   \
  } while (false)

namespace dsa::cuda {

[[noreturn]] inline void CallFailed(const char* error, const char* file, int line) {
  DeviceFailed(std::string(error) + " (" + file + ":" + std::to_string(line) + ")");
}

// Of an H100 or H200.  Only the shape of a grid may depend on it, no result.
inline constexpr int kMultiprocessors = 132;

}  // namespace dsa::cuda
