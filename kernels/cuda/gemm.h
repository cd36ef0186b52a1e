// Matrix products through cuBLASLt:  y = x W^T, all row-major, one call a product.
//
// cuBLASLt is column-major, so it computes y^T = W x^T: W is its transposed first operand, x its
// second.  For fp8 the scales of W are its 128 x 128 blocks with the K axis contiguous and padded
// to a multiple of 4, those of x are 1 x 128 with the row axis contiguous.  Ours of x are not, and
// of W only where K is a multiple of 512, as in every large model; what is not is rewritten into
// scratch before each call.
#pragma once

#include "common/view.h"
#include "kernels/backend.h"

#include <cstdint>
#include <map>
#include <tuple>

#include <cublasLt.h>
#include <cuda_runtime_api.h>

namespace dsa::cuda {

class Gemm final {
 public:
  Gemm() = default;
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;
  ~Gemm();

  // The handle and its workspace, from `backend`'s memory; once, before the first product.
  Status Open(Backend& backend);
  // What Reserve allocates, in bytes.
  static std::int64_t ScratchBytes(std::int64_t tokens_max, std::int64_t width_max);
  // Scratch for products of up to `tokens_max` rows and `width_max` columns.
  Status Reserve(Backend& backend, std::int64_t tokens_max, std::int64_t width_max);

  // Equal element types of x and weight; false where cuBLASLt offers no algorithm.
  bool Multiply(const LinearParams& params, cudaStream_t stream);
  // K a multiple of 128, N a multiple of 16; false where cuBLASLt offers no algorithm.
  bool MultiplyBlockScaled(const BlockScaledLinearParams& params, cudaStream_t stream);

 private:
  struct Problem {
    cudaDataType_t input;
    cudaDataType_t output;
    std::int64_t n, t, k;        // extents: W [n, k], x [t, k], y [t, n]
    std::int64_t ldw, ldx, ldy;  // row strides in elements
    const void* w;
    const void* x;
    void* y;
    const float* w_scales;  // null: no scaling
    const float* x_scales;
  };
  bool Run(const Problem& problem, cudaStream_t stream);

  struct ScratchSizes {
    std::int64_t tokens, width;                           // rounded up
    std::int64_t w_scales, x_scales, x_padded, y_padded;  // bytes
  };
  static ScratchSizes PlanScratch(std::int64_t tokens_max, std::int64_t width_max);

  using Shape = std::tuple<int, int, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                           std::int64_t, std::int64_t, bool>;
  struct Choice {
    bool found;
    cublasLtMatmulAlgo_t algorithm;
  };

  cublasLtHandle_t handle_ = nullptr;
  DeviceBuffer workspace_;
  std::map<Shape, Choice> choices_;  // filled at the first product of a shape
  std::int64_t tokens_max_ = 0;
  std::int64_t width_max_ = 0;
  DeviceBuffer w_scales_;  // f32 [width_max / 128, width_max / 128 padded to 4]
  DeviceBuffer x_scales_;  // f32 [width_max / 128, tokens_max padded to 16]
  DeviceBuffer x_padded_;  // fp8 [tokens_max padded to 16, width_max]
  DeviceBuffer y_padded_;  // the same rows of y, 4 bytes an element
};

}  // namespace dsa::cuda
