// Checks of CUDA calls.  An asynchronous CUDA error poisons the context for good, so there is
// nothing to hand back: the device has failed, and with it the process.
#pragma once

#include "common/view.h"

#include <cstdint>

#include <cuda_runtime_api.h>

#define DSA_CUDA_CHECK(call)                                                            \
  do {                                                                                  \
    const cudaError_t dsa_cuda_status = (call);                                         \
    if (dsa_cuda_status != cudaSuccess) [[unlikely]] {                                  \
      ::dsa::cuda::CallFailed(cudaGetErrorString(dsa_cuda_status), __FILE__, __LINE__); \
    }                                                                                   \
  } while (false)

namespace dsa::cuda {

[[noreturn]] void CallFailed(const char* error, const char* file, int line);

// Of an H100 or H200.  Only the shape of a grid may depend on it, no result.
inline constexpr int kMultiprocessors = 132;

// Whether every row of every head starts at a multiple of 16 bytes, as asynchronous copies want.
inline bool HasAlignedRows(const ConstAnyTensor3& tensor) {
  constexpr std::int64_t kAlignment = 16;
  return reinterpret_cast<std::uintptr_t>(tensor.data) % kAlignment == 0 &&
         tensor.row_stride * SizeOf(tensor.type) % kAlignment == 0 &&
         tensor.head_stride * SizeOf(tensor.type) % kAlignment == 0;
}
inline bool HasAlignedRows(const ConstAnyMatrix& matrix) {
  return HasAlignedRows(ConstAnyTensor3{.data = matrix.data,
                                        .type = matrix.type,
                                        .rows = matrix.rows,
                                        .heads = 1,
                                        .cols = matrix.cols,
                                        .row_stride = matrix.row_stride,
                                        .head_stride = 0});
}

}  // namespace dsa::cuda
