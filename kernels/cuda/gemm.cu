#include "kernels/cuda/element.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = 32UL << 20;
constexpr std::int64_t kRowAlignment = 16;         // rows of x in an fp8 product
constexpr std::int64_t kWeightScaleAlignment = 4;  // K blocks of the weight's scales
constexpr int kThreads = 256;
constexpr int kPackBytes = 16;

std::int64_t RoundUp(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

cudaDataType_t CudaType(DataType type) {
  switch (type) {
    case DataType::kF32: return CUDA_R_32F;
    case DataType::kBf16: return CUDA_R_16BF;
    case DataType::kFp8E4m3: return CUDA_R_8F_E4M3;
  }
  return CUDA_R_32F;
}

// What an fp8 product wants of x, in one launch: the scales transposed, to rows of `rows`, and
// where `padded` is given, x itself in `rows` dense rows.  Rows that x lacks are zero.
__global__ void PrepareInputKernel(Matrix<const float> scales, float* transposed,
                                   Matrix<const Fp8E4m3> x, Fp8E4m3* padded, std::int64_t rows) {
  const std::int64_t scale_tasks = rows * scales.cols;
  const std::int64_t task = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (task < scale_tasks) {
    const std::int64_t row = task % rows;
    transposed[task] = row < scales.rows ? scales.Row(row)[task / rows] : 0.0F;
    return;
  }
  const std::int64_t first = (task - scale_tasks) * kPackBytes;
  if (padded != nullptr && first < rows * x.cols) {
    const std::int64_t row = first / x.cols;
    Pack<Fp8E4m3, kPackBytes> pack = {};
    if (row < x.rows) {
      pack = LoadPack<kPackBytes>(x.Row(row) + first % x.cols);
    }
    StorePack(padded + first, pack);
  }
}

// The first rows of `source`, whose rows are dense, to `target`; both in bytes.
__global__ void CopyRowsKernel(const std::uint8_t* source, Matrix<std::uint8_t> target) {
  const std::int64_t first =
      (blockIdx.x * std::int64_t{kThreads} + threadIdx.x) * std::int64_t{kPackBytes};
  if (first < target.rows * target.cols) {
    StorePack(target.Row(first / target.cols) + first % target.cols,
              LoadPack<kPackBytes>(source + first));
  }
}

__global__ void PadScalesKernel(Matrix<const float> source, float* target,
                                std::int64_t target_cols) {
  const std::int64_t task = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (task < source.rows * target_cols) {
    const std::int64_t col = task % target_cols;
    target[task] = col < source.cols ? source.Row(task / target_cols)[col] : 0.0F;
  }
}

unsigned GridOf(std::int64_t tasks) {
  return static_cast<unsigned>((tasks + kThreads - 1) / kThreads);
}

// Whether cuBLASLt can read the scales of a weight where they lie.
bool IsAligned(const Matrix<const float>& scales) {
  return scales.cols % kWeightScaleAlignment == 0 && scales.row_stride == scales.cols &&
         reinterpret_cast<std::uintptr_t>(scales.data) % kPackBytes == 0;
}

// One cuBLASLt object, destroyed with its scope.
template <typename T, cublasStatus_t (*kDestroy)(T)>
struct Handle {
  Handle() = default;
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (value != nullptr) {
      DSA_CUBLAS_CHECK(kDestroy(value));
    }
  }
  T value = nullptr;
};
using Descriptor = Handle<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Handle<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Handle<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

template <typename T>
void Set(const Descriptor& descriptor, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  DSA_CUBLAS_CHECK(
      cublasLtMatmulDescSetAttribute(descriptor.value, attribute, &value, sizeof(value)));
}

}  // namespace

Gemm::~Gemm() {
  if (handle_ != nullptr) {
    DSA_CUBLAS_CHECK(cublasLtDestroy(handle_));
  }
}

Status Gemm::Open(Backend& backend) {
  DSA_CUBLAS_CHECK(cublasLtCreate(&handle_));
  DSA_ASSIGN_OR_RETURN(workspace_, backend.Allocate(kWorkspaceBytes));
  return {};
}

Gemm::ScratchSizes Gemm::PlanScratch(std::int64_t tokens_max, std::int64_t width_max) {
  constexpr auto kFloatBytes = static_cast<std::int64_t>(sizeof(float));
  const std::int64_t tokens = RoundUp(tokens_max, kRowAlignment);
  const std::int64_t width = RoundUp(width_max, kValuesPerScale);
  const std::int64_t blocks = RoundUp(width / kValuesPerScale, kWeightScaleAlignment);
  return {.tokens = tokens,
          .width = width,
          .w_scales = blocks * blocks * kFloatBytes,
          .x_scales = blocks * tokens * kFloatBytes,
          .x_padded = tokens * width,
          .y_padded = tokens * width * kFloatBytes};
}

std::int64_t Gemm::ScratchBytes(std::int64_t tokens_max, std::int64_t width_max) {
  const ScratchSizes sizes = PlanScratch(tokens_max, width_max);
  return sizes.w_scales + sizes.x_scales + sizes.x_padded + sizes.y_padded;
}

Status Gemm::Reserve(Backend& backend, std::int64_t tokens_max, std::int64_t width_max) {
  const ScratchSizes sizes = PlanScratch(tokens_max, width_max);
  tokens_max_ = sizes.tokens;
  width_max_ = sizes.width;
  DSA_ASSIGN_OR_RETURN(w_scales_, backend.Allocate(sizes.w_scales));
  DSA_ASSIGN_OR_RETURN(x_scales_, backend.Allocate(sizes.x_scales));
  DSA_ASSIGN_OR_RETURN(x_padded_, backend.Allocate(sizes.x_padded));
  DSA_ASSIGN_OR_RETURN(y_padded_, backend.Allocate(sizes.y_padded));
  return {};
}

bool Gemm::Multiply(const LinearParams& params, cudaStream_t stream) {
  return Run({.input = CudaType(params.x.type),
              .output = CudaType(params.y.type),
              .n = params.weight.rows,
              .t = params.x.rows,
              .k = params.x.cols,
              .ldw = params.weight.row_stride,
              .ldx = params.x.row_stride,
              .ldy = params.y.row_stride,
              .w = params.weight.data,
              .x = params.x.data,
              .y = params.y.data,
              .w_scales = nullptr,
              .x_scales = nullptr},
             stream);
}

bool Gemm::MultiplyBlockScaled(const BlockScaledLinearParams& params, cudaStream_t stream) {
  const std::int64_t k = params.x.cols;
  const std::int64_t n = params.weight.rows;
  const std::int64_t t = params.x.rows;
  if (k % kValuesPerScale != 0 || n % kRowAlignment != 0 || k > width_max_ || n > width_max_ ||
      t > tokens_max_) {
    return false;
  }
  const std::int64_t t_padded = RoundUp(t, kRowAlignment);
  const bool is_padded = t != t_padded;
  PrepareInputKernel<<<GridOf(t_padded * params.x_scales.cols +
                              (is_padded ? t_padded * k / kPackBytes : 0)),
                       kThreads, 0, stream>>>(params.x_scales, x_scales_.As<float>(), params.x,
                                              is_padded ? x_padded_.As<Fp8E4m3>() : nullptr,
                                              t_padded);
  const float* w_scales = params.weight_scales.data;
  if (!IsAligned(params.weight_scales)) {
    const std::int64_t scale_cols = RoundUp(params.weight_scales.cols, kWeightScaleAlignment);
    PadScalesKernel<<<GridOf(params.weight_scales.rows * scale_cols), kThreads, 0, stream>>>(
        params.weight_scales, w_scales_.As<float>(), scale_cols);
    w_scales = w_scales_.As<float>();
  }
  DSA_CUDA_CHECK(cudaGetLastError());

  Problem problem = {.input = CUDA_R_8F_E4M3,
                     .output = CudaType(params.y.type),
                     .n = n,
                     .t = t,
                     .k = k,
                     .ldw = params.weight.row_stride,
                     .ldx = params.x.row_stride,
                     .ldy = params.y.row_stride,
                     .w = params.weight.data,
                     .x = params.x.data,
                     .y = params.y.data,
                     .w_scales = w_scales,
                     .x_scales = x_scales_.As<float>()};
  if (!is_padded) {
    return Run(problem, stream);
  }
  problem.t = t_padded;
  problem.x = x_padded_.data();
  problem.ldx = k;
  problem.y = y_padded_.data();
  problem.ldy = n;
  if (!Run(problem, stream)) {
    return false;
  }
  const std::int64_t element_bytes = SizeOf(params.y.type);
  CopyRowsKernel<<<GridOf(t * n * element_bytes / kPackBytes), kThreads, 0, stream>>>(
      y_padded_.As<const std::uint8_t>(), {.data = static_cast<std::uint8_t*>(params.y.data),
                                           .rows = t,
                                           .cols = n * element_bytes,
                                           .row_stride = params.y.row_stride * element_bytes});
  DSA_CUDA_CHECK(cudaGetLastError());
  return true;
}

bool Gemm::Run(const Problem& p, cudaStream_t stream) {
  Descriptor descriptor;
  DSA_CUBLAS_CHECK(cublasLtMatmulDescCreate(&descriptor.value, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Set(descriptor, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  Set(descriptor, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  if (p.w_scales != nullptr) {
    Set(descriptor, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
    Set(descriptor, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
    Set(descriptor, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.w_scales);
    Set(descriptor, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.x_scales);
  }
  Layout w;
  Layout x;
  Layout y;
  DSA_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&w.value, p.input, p.k, p.n, p.ldw));
  DSA_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&x.value, p.input, p.k, p.t, p.ldx));
  DSA_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&y.value, p.output, p.n, p.t, p.ldy));

  const Shape shape{p.input, p.output, p.n, p.t, p.k, p.ldw, p.ldx, p.ldy, p.w_scales != nullptr};
  auto choice = choices_.find(shape);
  if (choice == choices_.end()) {
    Preference preference;
    DSA_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference.value));
    DSA_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
        preference.value, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
        sizeof(kWorkspaceBytes)));
    cublasLtMatmulHeuristicResult_t result{};
    int results = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_, descriptor.value, w.value, x.value, y.value,
                                       y.value, preference.value, 1, &result, &results);
    const bool found = status == CUBLAS_STATUS_SUCCESS && results > 0;
    choice = choices_.emplace(shape, Choice{found, result.algo}).first;
  }
  if (!choice->second.found) {
    return false;
  }
  const float one = 1.0F;
  const float zero = 0.0F;
  DSA_CUBLAS_CHECK(cublasLtMatmul(handle_, descriptor.value, &one, p.w, w.value, p.x, x.value,
                                  &zero, p.y, y.value, p.y, y.value, &choice->second.algorithm,
                                  workspace_.data(), kWorkspaceBytes, stream));
  return true;
}

}  // namespace dsa::cuda
