// Gate: the logits, then a warp per token that chooses.
//
//   1. Products of x with the experts' rows, over slices of 1024 columns, each to its own part of
//      scratch [slices, T, E] in float32: few rows have too few tiles to read the weights at the
//      memory's rate.  bfloat16 runs on the tensor cores, other types in float32 without them.
//   2. The parts are added in order of the slices; sigmoid, bias; groups; the K largest, one after
//      the other: 64-bit keys (value, then the lower id), the largest over the lanes.
//
// The slices depend on D alone, so a row's bits do not depend on the rows beside it.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/plain_product.cuh"
#include "kernels/cuda/row_product.cuh"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/ops/gate.h"

#include <cfloat>

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr int kSliceColumns = 1024;
constexpr int kChooseWarps = 4;
constexpr float kTiny = 1e-20F;  // keeps a sum of zeros from dividing by zero

std::int64_t Slices(std::int64_t hidden) {
  return (hidden + kSliceColumns - 1) / kSliceColumns;
}

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
  float* output = logits + (blockIdx.z * p.x.rows + first_token) * experts + first_expert;
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
               [&](int token, int row, float value) { output[token * experts + row] = value; });
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
  float* output = logits + (blockIdx.z * p.x.rows + first_token) * experts + first_expert;
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
      [&](int token, int row, float value) { output[token * experts + row] = value; });
}

// Candidates are finite: NaN and -inf count as the lowest finite value.
__device__ float AsCandidate(float value) {
  return value > -FLT_MAX ? value : -FLT_MAX;
}

// Orders candidates as unsigned integers: the larger value, then the lower id; -0 equals +0.
// Never 0, which marks what may not be chosen.
__device__ unsigned long long KeyOf(float value, int id) {
  const unsigned bits = __float_as_uint(value == 0.0F ? 0.0F : value);
  const auto sign = static_cast<unsigned>(static_cast<int>(bits) >> 31);
  const unsigned high = bits ^ (sign | 0x80000000U);
  return static_cast<unsigned long long>(high) << 32 | ~static_cast<unsigned>(id);
}

__device__ unsigned long long WarpLargest(unsigned long long key) {
  for (int offset = cuda::kWarpSize / 2; offset > 0; offset /= 2) {
    const unsigned long long other = __shfl_xor_sync(cuda::kAllLanes, key, offset);
    key = other > key ? other : key;
  }
  return key;
}

// The id of the largest key of the warp's list, which is taken out of it.
__device__ int TakeLargest(unsigned long long* keys, int count, int lane) {
  unsigned long long best = 0;
  for (int i = lane; i < count; i += cuda::kWarpSize) {
    best = keys[i] > best ? keys[i] : best;
  }
  const int id = static_cast<int>(~static_cast<unsigned>(WarpLargest(best)));
  __syncwarp();
  if (lane == 0) {
    keys[id] = 0;
  }
  __syncwarp();
  return id;
}

__device__ float SumOfTwoLargest(const float* values, int count) {
  if (count == 1) {
    return values[0];
  }
  float first = -FLT_MAX;
  float second = -FLT_MAX;
  for (int i = 0; i < count; ++i) {
    second = fmaxf(second, fminf(first, values[i]));
    first = fmaxf(first, values[i]);
  }
  return AsCandidate(first + second);
}

// Of a warp in shared memory: keys [E], keys of groups [groups], scores [E], biased scores [E].
__host__ __device__ constexpr std::int64_t ChooseBytes(std::int64_t experts, std::int64_t groups) {
  return (experts + groups) * 8 + 2 * experts * 4;
}

__global__ __launch_bounds__(kChooseWarps* cuda::kWarpSize) void ChooseExpertsKernel(
    const __grid_constant__ GateParams p, const float* logits, int slices) {
  extern __shared__ unsigned long long memory[];
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const std::int64_t token = blockIdx.x * std::int64_t{kChooseWarps} + warp;
  if (token >= p.x.rows) {
    return;
  }
  const int experts = static_cast<int>(p.weight.rows);
  const int groups = static_cast<int>(p.groups);
  unsigned long long* keys = memory + warp * (ChooseBytes(experts, groups) / 8);
  unsigned long long* group_keys = keys + experts;
  auto* scores = reinterpret_cast<float*>(group_keys + groups);
  float* biased = scores + experts;

  // Scores.
  for (int e = lane; e < experts; e += cuda::kWarpSize) {
    float logit = 0.0F;
    for (int slice = 0; slice < slices; ++slice) {
      logit += logits[(slice * p.x.rows + token) * experts + e];
    }
    scores[e] = 1.0F / (1.0F + expf(-logit));
    biased[e] = AsCandidate(scores[e] + p.bias.data[e]);
    keys[e] = KeyOf(biased[e], e);
  }
  __syncwarp();

  // Groups.
  if (p.groups_kept < p.groups) {
    const int size = experts / groups;
    for (int g = lane; g < groups; g += cuda::kWarpSize) {
      group_keys[g] = KeyOf(SumOfTwoLargest(biased + g * size, size), g);
    }
    __syncwarp();
    for (int kept = 0; kept < static_cast<int>(p.groups_kept); ++kept) {
      TakeLargest(group_keys, groups, lane);
    }
    for (int e = lane; e < experts; e += cuda::kWarpSize) {
      if (group_keys[e / size] != 0) {  // not among the best
        keys[e] = 0;
      }
    }
    __syncwarp();
  }

  // Choice.
  const int chosen = static_cast<int>(p.experts.cols);
  float sum = 0.0F;
  for (int k = 0; k < chosen; ++k) {
    const int id = TakeLargest(keys, experts, lane);
    sum += scores[id];
    if (lane == 0) {
      p.experts.Row(token)[k] = id;
    }
  }
  __syncwarp();
  const float divisor = p.normalize ? sum + kTiny : 1.0F;
  for (int k = lane; k < chosen; k += cuda::kWarpSize) {
    p.weights.Row(token)[k] = scores[p.experts.Row(token)[k]] / divisor * p.scale;
  }
}

template <int kTokens>
void LaunchLogits(const GateParams& params, float* logits, cudaStream_t stream) {
  using Product = cuda::RowProduct<__nv_bfloat16, kTokens>;
  DSA_CUDA_CHECK(cudaFuncSetAttribute(GateLogitsKernel<kTokens>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      Product::kSharedBytes));
  const dim3 grid(
      static_cast<unsigned>((params.weight.rows + Product::kWeightRows - 1) / Product::kWeightRows),
      static_cast<unsigned>((params.x.rows + kTokens - 1) / kTokens),
      static_cast<unsigned>(Slices(params.x.cols)));
  GateLogitsKernel<kTokens><<<grid, kThreads, Product::kSharedBytes, stream>>>(
      params, logits, cuda::HasAlignedRows(params.x) && cuda::HasAlignedRows(params.weight));
}

void LaunchPlainLogits(const GateParams& params, float* logits, cudaStream_t stream) {
  cuda::DispatchFloat(params.x.type, [&]<typename X>(X) {
    cuda::DispatchFloat(params.weight.type, [&]<typename W>(W) {
      using Product = cuda::PlainProduct<X, W>;
      const dim3 grid(
          static_cast<unsigned>((params.weight.rows + Product::kWeightRows - 1) /
                                Product::kWeightRows),
          static_cast<unsigned>((params.x.rows + Product::kTokens - 1) / Product::kTokens),
          static_cast<unsigned>(Slices(params.x.cols)));
      PlainGateLogitsKernel<X, W><<<grid, kThreads, 0, stream>>>(params, logits);
    });
  });
}

float* TakeLogits(cuda::ScratchArena& arena, std::int64_t tokens, std::int64_t hidden,
                  std::int64_t experts) {
  return arena.Take<float>(Slices(hidden) * tokens * experts);
}

}  // namespace

std::int64_t cuda::GateScratchBytes(const ScratchLimits& limits) {
  ScratchArena arena;
  TakeLogits(arena, limits.tokens_max, limits.hidden, limits.experts);
  return arena.used();
}

void CudaBackend::Gate(const GateParams& params) {
  const GateExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  cuda::ScratchArena arena(state_->scratch);
  float* logits = TakeLogits(arena, extents.tokens, extents.hidden, extents.experts);
  arena.CheckFits("Gate");

  constexpr std::int64_t kFew = 64;  // more tiles, which read the weights from L2 again
  if (params.x.type != DataType::kBf16 || params.weight.type != DataType::kBf16) {
    LaunchPlainLogits(params, logits, state_->stream);
  } else if (extents.tokens <= kFew) {
    LaunchLogits<8>(params, logits, state_->stream);
  } else {
    LaunchLogits<64>(params, logits, state_->stream);
  }
  DSA_CUDA_CHECK(cudaGetLastError());

  const auto shared_bytes =
      static_cast<int>(kChooseWarps * ChooseBytes(extents.experts, params.groups));
  constexpr int kSharedBytesMax = 200 * 1024;  // of 227 a block may have on sm_90
  DSA_CHECK(shared_bytes <= kSharedBytesMax, "Gate: E={} is too many", extents.experts);
  DSA_CUDA_CHECK(cudaFuncSetAttribute(
      ChooseExpertsKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytesMax));
  ChooseExpertsKernel<<<static_cast<unsigned>((extents.tokens + kChooseWarps - 1) / kChooseWarps),
                        kChooseWarps * cuda::kWarpSize, shared_bytes, state_->stream>>>(
      params, logits, static_cast<int>(Slices(extents.hidden)));
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa
