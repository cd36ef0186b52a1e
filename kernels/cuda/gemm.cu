#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/linear.h"

#include <algorithm>
#include <bit>
#include <initializer_list>
#include <utility>

namespace dsa::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = 32UL << 20;
constexpr std::int64_t kRowAlignment = 16;         // rows of x in an fp8 product
constexpr std::int64_t kWeightScaleAlignment = 4;  // K blocks of the weight's scales
constexpr int kThreads = 256;
constexpr int kPackBytes = 16;
constexpr std::uint32_t kAlignmentMax = 256;  // cuBLASLt tells no more apart

std::int64_t RoundUp(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

cudaDataType_t CudaType(DataType type) {
  switch (type) {
    case DataType::kF32: return CUDA_R_32F;
    case DataType::kBf16: return CUDA_R_16BF;
    case DataType::kFp8E4m3: return CUDA_R_8F_E4M3;
    case DataType::kF64: return CUDA_R_64F;
  }
  return CUDA_R_32F;
}

// What an fp8 product wants of x, in one launch: the scales transposed, to rows of `rows`, and
// where `padded` is given, x itself in `rows` dense rows.  Rows that x lacks are zero.
__global__ void PrepareInputKernel(Matrix<const float> scales, float* transposed,
                                   Matrix<const Fp8E4m3> x, Fp8E4m3* padded, std::int64_t rows) {
  StartAfterPredecessors();
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
  StartAfterPredecessors();
  const std::int64_t first =
      (blockIdx.x * std::int64_t{kThreads} + threadIdx.x) * std::int64_t{kPackBytes};
  if (first < target.rows * target.cols) {
    StorePack(target.Row(first / target.cols) + first % target.cols,
              LoadPack<kPackBytes>(source + first));
  }
}

__global__ void PadScalesKernel(Matrix<const float> source, float* target,
                                std::int64_t target_cols) {
  StartAfterPredecessors();
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

// The row count that stands for `rows`: the next power of two, at least kRowAlignment.
std::int64_t BucketOf(std::int64_t rows) {
  return static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>(std::max(rows, kRowAlignment))));
}

int BucketIndex(std::int64_t bucket) {
  return std::bit_width(static_cast<std::uint64_t>(bucket / kRowAlignment)) - 1;
}

// The largest power of two that divides all addresses, as far as cuBLASLt cares.
std::uint32_t AlignmentOf(std::initializer_list<const void*> addresses) {
  std::uintptr_t bits = kAlignmentMax;
  for (const void* address : addresses) {
    bits |= reinterpret_cast<std::uintptr_t>(address);
  }
  return static_cast<std::uint32_t>(bits & (~bits + 1));
}

template <typename T>
void Set(cublasLtMatmulDesc_t descriptor, cublasLtMatmulDescAttributes_t attribute,
         const T& value) {
  DSA_CUBLAS_CHECK(Lt().MatmulDescSetAttribute(descriptor, attribute, &value, sizeof(value)));
}

template <typename T>
void Set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const T& value) {
  DSA_CUBLAS_CHECK(Lt().MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
}

// A matrix whose columns, in cuBLASLt's order, are rows of ours.
void SetRows(cublasLtMatrixLayout_t layout, std::int64_t rows) {
  const auto columns = static_cast<std::uint64_t>(rows);
  DSA_CUBLAS_CHECK(Lt().MatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &columns,
                                                 sizeof(columns)));
}

}  // namespace

Gemm::Plan::Plan(const Shape& shape) : shape(shape) {
  DSA_CUBLAS_CHECK(Lt().MatmulDescCreate(&descriptor, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Set(descriptor, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  Set(descriptor, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  if (shape.is_scaled) {
    Set(descriptor, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
    Set(descriptor, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
  }
  const auto [input, output] = std::pair(shape.input, shape.output);
  DSA_CUBLAS_CHECK(Lt().MatrixLayoutCreate(&w, input, shape.k, shape.n, shape.ldw));
  DSA_CUBLAS_CHECK(Lt().MatrixLayoutCreate(&x, input, shape.k, kRowAlignment, shape.ldx));
  DSA_CUBLAS_CHECK(Lt().MatrixLayoutCreate(&y, output, shape.n, kRowAlignment, shape.ldy));
}

Gemm::Plan::~Plan() {
  DSA_CUBLAS_CHECK(Lt().MatrixLayoutDestroy(y));
  DSA_CUBLAS_CHECK(Lt().MatrixLayoutDestroy(x));
  DSA_CUBLAS_CHECK(Lt().MatrixLayoutDestroy(w));
  DSA_CUBLAS_CHECK(Lt().MatmulDescDestroy(descriptor));
}

void Gemm::Plan::SetTokens(std::int64_t rows) const {
  SetRows(x, rows);
  SetRows(y, rows);
}

Gemm::~Gemm() {
  plans_.clear();
  if (handle_ != nullptr) {
    DSA_CUBLAS_CHECK(Lt().Destroy(handle_));
  }
}

Status Gemm::Open(Backend& backend) {
  if (const Result<CublasLt>& library = LoadCublasLt(); !library.ok()) {
    return library.error();
  }
  DSA_CUBLAS_CHECK(Lt().Create(&handle_));
  DSA_ASSIGN_OR_RETURN(workspace_, backend.Allocate(kWorkspaceBytes));
  plans_.reserve(kPlansMax);
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
  DSA_CHECK(k <= width_max_ && n <= width_max_ && t <= tokens_max_,
            "BlockScaledLinear: T={} N={} K={}, but scratch is reserved for {} rows of {}", t, n, k,
            tokens_max_, width_max_);
  if (k % kValuesPerScale != 0 || n % kRowAlignment != 0) {
    return false;
  }
  const std::int64_t t_padded = RoundUp(t, kRowAlignment);
  const bool is_padded = t != t_padded;
  LaunchDependent(PrepareInputKernel,
                  {.grid = GridOf(t_padded * params.x_scales.cols +
                                  (is_padded ? t_padded * k / kPackBytes : 0)),
                   .threads = kThreads},
                  stream, params.x_scales, x_scales_.As<float>(), params.x,
                  is_padded ? x_padded_.As<Fp8E4m3>() : nullptr, t_padded);
  const float* w_scales = params.weight_scales.data;
  if (!IsAligned(params.weight_scales)) {
    const std::int64_t scale_cols = RoundUp(params.weight_scales.cols, kWeightScaleAlignment);
    LaunchDependent(PadScalesKernel,
                    {.grid = GridOf(params.weight_scales.rows * scale_cols), .threads = kThreads},
                    stream, params.weight_scales, w_scales_.As<float>(), scale_cols);
    w_scales = w_scales_.As<float>();
  }

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
  LaunchDependent(CopyRowsKernel,
                  {.grid = GridOf(t * n * element_bytes / kPackBytes), .threads = kThreads}, stream,
                  y_padded_.As<const std::uint8_t>(),
                  Matrix<std::uint8_t>{.data = static_cast<std::uint8_t*>(params.y.data),
                                       .rows = t,
                                       .cols = n * element_bytes,
                                       .row_stride = params.y.row_stride * element_bytes});
  return true;
}

void Gemm::FindAlgorithms(Plan& plan) {
  cublasLtMatmulPreference_t preference = nullptr;
  DSA_CUBLAS_CHECK(Lt().MatmulPreferenceCreate(&preference));
  Set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    Set(preference, attribute, plan.shape.alignment);
  }
  if (plan.shape.is_scaled) {
    // Without scales it offers no algorithm; which ones they are does not matter yet.
    Set(plan.descriptor, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, workspace_.As<const float>());
    Set(plan.descriptor, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, workspace_.As<const float>());
  }
  for (int bucket = 0; bucket < kBuckets; ++bucket) {
    plan.SetTokens(kRowAlignment << bucket);
    cublasLtMatmulHeuristicResult_t result{};
    int results = 0;
    const cublasStatus_t status = Lt().MatmulAlgoGetHeuristic(
        handle_, plan.descriptor, plan.w, plan.x, plan.y, plan.y, preference, 1, &result, &results);
    plan.choices[bucket] = {.found = status == CUBLAS_STATUS_SUCCESS && results > 0,
                            .algorithm = result.algo};
  }
  DSA_CUBLAS_CHECK(Lt().MatmulPreferenceDestroy(preference));
}

Gemm::Plan& Gemm::PlanOf(const Shape& shape) {
  for (const std::unique_ptr<Plan>& plan : plans_) {
    if (plan->shape == shape) {
      return *plan;
    }
  }
  auto plan = std::make_unique<Plan>(shape);
  FindAlgorithms(*plan);
  if (plans_.size() < kPlansMax) {
    plans_.push_back(std::move(plan));
    return *plans_.back();
  }
  // More shapes than any model has: a test.  The oldest goes.
  replaced_ = (replaced_ + 1) % kPlansMax;
  plans_[replaced_] = std::move(plan);
  return *plans_[replaced_];
}

bool Gemm::Run(const Problem& p, cudaStream_t stream) {
  const Plan& plan = PlanOf({.input = p.input,
                             .output = p.output,
                             .n = p.n,
                             .k = p.k,
                             .ldw = p.ldw,
                             .ldx = p.ldx,
                             .ldy = p.ldy,
                             .is_scaled = p.w_scales != nullptr,
                             .alignment = AlignmentOf({p.w, p.x, p.y})});
  const std::int64_t bucket = BucketOf(p.t);
  DSA_CHECK(BucketIndex(bucket) < kBuckets, "Gemm: {} rows, at most {}", p.t,
            kRowAlignment << (kBuckets - 1));
  const Choice& choice = plan.choices[BucketIndex(bucket)];
  if (!choice.found) {
    return false;
  }
  if (p.w_scales != nullptr) {
    Set(plan.descriptor, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.w_scales);
    Set(plan.descriptor, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.x_scales);
  }
  plan.SetTokens(p.t);
  const float one = 1.0F;
  const float zero = 0.0F;
  const cublasStatus_t status =
      Lt().Matmul(handle_, plan.descriptor, &one, p.w, plan.w, p.x, plan.x, &zero, p.y, plan.y, p.y,
                  plan.y, &choice.algorithm, workspace_.data(), kWorkspaceBytes, stream);
  // Of odd extents, an algorithm for the bucket's rows may not take fewer; nothing was queued then.
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) {
    return false;
  }
  DSA_CUBLAS_CHECK(status);
  return true;
}

}  // namespace dsa::cuda
