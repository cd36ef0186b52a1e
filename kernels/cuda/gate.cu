// Gate: the logits, then a warp per token that chooses.
//
//   1. Products of x with the experts' rows, over slices of 1024 columns, each to its own part of
//      scratch [slices, T, E] in float32: an expert's tiles are too few to read the weights at the
//      memory's rate.  bfloat16 runs on the tensor cores, other types in float32 without them.
//   2. The parts are added in order of the slices; sigmoid, bias; groups; the K largest
//      (gate_choice.cuh).
//
// Few rows take one launch for both (few_gate.cuh).  The slices depend on D alone, so a row's bits
// do not depend on the rows beside it.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/few_gate.h"
#include "kernels/cuda/gate_choice.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/plain_product.cuh"
#include "kernels/cuda/row_product.cuh"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/ops/gate.h"

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr int kSliceColumns = cuda::kGateSliceColumns;
constexpr int kChooseWarps = 4;
constexpr int kExpertsMax = 1024;

// Grid: tiles of experts, tiles of tokens, slices.
template <int kTokens>
__global__ __launch_bounds__(kThreads) void GateLogitsKernel(const __grid_constant__ GateParams p,
                                                             float* logits, bool is_aligned) {
  using Product = cuda::RowProduct<__nv_bfloat16, kTokens>;
  extern __shared__ __align__(16) std::uint8_t shared[];
  const std::int64_t first_expert = blockIdx.x * std::int64_t{Product::kWeightRows};
  const std::int64_t first_token = blockIdx.y * std::int64_t{kTokens};
  const std::int64_t first_column = blockIdx.z * std::int64_t{kSliceColumns};
  const std::int64_t experts = p.weight.rows;
  const std::int64_t stride = cuda::GateLogitStride(experts);
  float* output = logits + (blockIdx.z * p.x.rows + first_token) * stride + first_expert;
  constexpr std::int64_t kBytes = sizeof(__nv_bfloat16);
  Product::Run(shared,
               {.weight = static_cast<const std::uint8_t*>(p.weight.data) +
                          (first_expert * p.weight.row_stride + first_column) * kBytes,
                .weight_stride = p.weight.row_stride * kBytes,
                .weight_rows = static_cast<int>(
                    min(experts - first_expert, std::int64_t{Product::kWeightRows})),
                .weight_scales = nullptr,
                .x = static_cast<const std::uint8_t*>(p.x.data) +
                     (first_token * p.x.row_stride + first_column) * kBytes,
                .x_stride = p.x.row_stride * kBytes,
                .x_rows = nullptr,
                .tokens = static_cast<int>(min(p.x.rows - first_token, std::int64_t{kTokens})),
                .x_scales = nullptr,
                .x_scale_stride = 0,
                .row_bytes = min(p.x.cols - first_column, std::int64_t{kSliceColumns}) * kBytes,
                .is_aligned = is_aligned},
               [&](int token, int row, float value) { output[token * stride + row] = value; });
}

template <typename X, typename W>
__global__ __launch_bounds__(kThreads) void PlainGateLogitsKernel(
    const __grid_constant__ GateParams p, float* logits) {
  using Product = cuda::PlainProduct<X, W>;
  __shared__ typename Product::Shared shared;
  const std::int64_t first_expert = blockIdx.x * std::int64_t{Product::kWeightRows};
  const std::int64_t first_token = blockIdx.y * std::int64_t{Product::kTokens};
  const std::int64_t first_column = blockIdx.z * std::int64_t{kSliceColumns};
  const std::int64_t experts = p.weight.rows;
  const std::int64_t stride = cuda::GateLogitStride(experts);
  float* output = logits + (blockIdx.z * p.x.rows + first_token) * stride + first_expert;
  Product::Run(
      shared,
      {.weight =
           static_cast<const W*>(p.weight.data) + first_expert * p.weight.row_stride + first_column,
       .weight_stride = p.weight.row_stride,
       .weight_column_stride = 1,
       .weight_rows =
           static_cast<int>(min(experts - first_expert, std::int64_t{Product::kWeightRows})),
       .x = static_cast<const X*>(p.x.data) + first_token * p.x.row_stride + first_column,
       .x_stride = p.x.row_stride,
       .x_rows = nullptr,
       .tokens = static_cast<int>(min(p.x.rows - first_token, std::int64_t{Product::kTokens})),
       .columns = static_cast<int>(min(p.x.cols - first_column, std::int64_t{kSliceColumns}))},
      [&](int token, int row, float value) { output[token * stride + row] = value; });
}

template <int kPerLane>  // experts
__global__ __launch_bounds__(kChooseWarps* cuda::kWarpSize) void ChooseExpertsKernel(
    const __grid_constant__ GateParams p, const float* logits) {
  __shared__ cuda::ChoiceShared<kPerLane> shared[kChooseWarps];
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  cuda::StartAfterPredecessors();
  const std::int64_t token = blockIdx.x * std::int64_t{kChooseWarps} + warp;
  if (token < p.x.rows) {
    cuda::ChooseExperts<kPerLane>(p, logits, token, lane, shared[warp]);
  }
}

void LaunchLogits(const GateParams& params, float* logits, cudaStream_t stream) {
  constexpr int kTokens = 64;
  using Product = cuda::RowProduct<__nv_bfloat16, kTokens>;
  DSA_CUDA_CHECK(cudaFuncSetAttribute(GateLogitsKernel<kTokens>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      Product::kSharedBytes));
  const dim3 grid(
      static_cast<unsigned>((params.weight.rows + Product::kWeightRows - 1) / Product::kWeightRows),
      static_cast<unsigned>((params.x.rows + kTokens - 1) / kTokens),
      static_cast<unsigned>(cuda::GateSlices(params.x.cols)));
  GateLogitsKernel<kTokens><<<grid, kThreads, Product::kSharedBytes, stream>>>(
      params, logits, cuda::HasAlignedRows(params.x) && cuda::HasAlignedRows(params.weight));
}

void LaunchChoice(const GateParams& params, const float* logits, cudaStream_t stream) {
  const cuda::LaunchShape shape = {
      .grid = static_cast<unsigned>((params.x.rows + kChooseWarps - 1) / kChooseWarps),
      .threads = kChooseWarps * cuda::kWarpSize};
  params.weight.rows <= 256
      ? cuda::LaunchDependent(ChooseExpertsKernel<8>, shape, stream, params, logits)
      : cuda::LaunchDependent(ChooseExpertsKernel<kExpertsMax / cuda::kWarpSize>, shape, stream,
                              params, logits);
}

void LaunchPlainLogits(const GateParams& params, float* logits, cudaStream_t stream) {
  cuda::DispatchFloat(params.x.type, [&]<typename X>(X) {
    cuda::DispatchFloat(params.weight.type, [&]<typename W>(W) {
      using Product = cuda::PlainProduct<X, W>;
      const dim3 grid(
          static_cast<unsigned>((params.weight.rows + Product::kWeightRows - 1) /
                                Product::kWeightRows),
          static_cast<unsigned>((params.x.rows + Product::kTokens - 1) / Product::kTokens),
          static_cast<unsigned>(cuda::GateSlices(params.x.cols)));
      PlainGateLogitsKernel<X, W><<<grid, kThreads, 0, stream>>>(params, logits);
    });
  });
}

float* TakeLogits(cuda::ScratchArena& arena, std::int64_t tokens, std::int64_t hidden,
                  std::int64_t experts) {
  return arena.Take<float>(cuda::GateSlices(hidden) * tokens * cuda::GateLogitStride(experts));
}

}  // namespace

std::int64_t cuda::GateScratchBytes(const ScratchLimits& limits) {
  ScratchArena arena;
  TakeLogits(arena, limits.tokens_max, limits.hidden, limits.experts);
  return arena.used();
}

void cuda::Gate(const GateParams& params, const DeviceBuffer& scratch, unsigned* counters,
                cudaStream_t stream) {
  const GateExtents extents = Validate(params);
  DSA_CHECK(extents.experts <= kExpertsMax, "Gate: E={}, limit {}", extents.experts, kExpertsMax);
  if (extents.tokens == 0) {
    return;
  }
  cuda::ScratchArena arena(scratch);
  float* logits = TakeLogits(arena, extents.tokens, extents.hidden, extents.experts);
  arena.CheckFits("Gate");

  if (cuda::FewGateTakes(params)) {
    cuda::FewGate({.gate = params, .preparation = nullptr, .logits = logits, .counters = counters},
                  stream);
    return;
  }
  if (params.x.type == DataType::kBf16 && params.weight.type == DataType::kBf16) {
    LaunchLogits(params, logits, stream);
  } else {
    LaunchPlainLogits(params, logits, stream);
  }
  DSA_CUDA_CHECK(cudaGetLastError());
  LaunchChoice(params, logits, stream);
}

}  // namespace dsa
