// Matrix products through cuBLASLt:  y = x W^T, all row-major, one call per product.
//
// cuBLASLt is column-major, so it computes y^T = W x^T: W is its transposed first operand, x its
// second.  For fp8 it wants the scales of W (128 x 128 blocks) with the K axis contiguous and
// padded to a multiple of 4, and those of x (1 x 128) with the row axis contiguous.  The scales of
// x lie the other way, and those of W are unpadded where K is no multiple of 512: these are
// rewritten into scratch before each product.
//
// The first product of a shape of weight plans it for every number of rows: descriptors are made,
// and an algorithm is chosen for each power of two.  From then on a product of that shape allocates
// nothing and searches nothing, whatever its rows, and may be captured into a graph.
#pragma once

#include "common/view.h"
#include "kernels/backend.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

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

  // Equal element types of x and weight; false where cuBLASLt offers no algorithm for the shape.
  bool Multiply(const LinearParams& params, cudaStream_t stream);
  // False where K is no multiple of 128 or N none of 16, or cuBLASLt offers no algorithm.
  // CHECK-fails on more rows or columns than Reserve was told.
  bool MultiplyBlockScaled(const BlockScaledLinearParams& params, cudaStream_t stream);

  // Shapes of weights that were planned and are kept.
  std::size_t plans() const { return plans_.size(); }

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

  // What a plan is found by: everything of a problem but its rows and addresses.
  struct Shape {
    cudaDataType_t input;
    cudaDataType_t output;
    std::int64_t n, k;
    std::int64_t ldw, ldx, ldy;
    bool is_scaled;
    std::uint32_t alignment;  // of all addresses, in bytes

    friend bool operator==(const Shape&, const Shape&) = default;
  };
  struct Choice {
    bool found;
    cublasLtMatmulAlgo_t algorithm;
  };
  static constexpr int kBuckets = 17;           // 16 << i rows each: up to 1M
  static constexpr std::size_t kPlansMax = 64;  // a model has about 20
  struct Plan {
    explicit Plan(const Shape& shape);
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;
    ~Plan();
    void SetTokens(std::int64_t rows) const;

    const Shape shape;
    cublasLtMatmulDesc_t descriptor = nullptr;
    cublasLtMatrixLayout_t w = nullptr;
    cublasLtMatrixLayout_t x = nullptr;
    cublasLtMatrixLayout_t y = nullptr;
    std::array<Choice, kBuckets> choices{};
  };
  Plan& PlanOf(const Shape& shape);
  void FindAlgorithms(Plan& plan);

  cublasLtHandle_t handle_ = nullptr;
  DeviceBuffer workspace_;
  std::vector<std::unique_ptr<Plan>> plans_;
  std::size_t replaced_ = 0;  // the last plan that gave way to another
  std::int64_t tokens_max_ = 0;
  std::int64_t width_max_ = 0;
  DeviceBuffer w_scales_;  // f32 [width_max / 128, width_max / 128 padded to 4]
  DeviceBuffer x_scales_;  // f32 [width_max / 128, tokens_max padded to 16]
  DeviceBuffer x_padded_;  // fp8 [tokens_max padded to 16, width_max]
  DeviceBuffer y_padded_;  // the same rows of y, 4 bytes an element
};

}  // namespace dsa::cuda
