// Gate: the logits, then a warp per token that chooses.
//
//   1. Products of x with the experts' rows, over slices of 1024 columns, each to its own part of
//      scratch [slices, T, E] in float32: few rows have too few tiles to read the weights at the
//      memory's rate.  bfloat16 runs on the tensor cores, other types in float32 without them.
//      Few rows: 16 experts a block, a warp per 128 columns, everything it needs asked for at once,
//      the weights before the kernels ahead have ended.
//   2. The parts are added in order of the slices; sigmoid, bias; groups; the K largest, one after
//      the other: the lanes hold the candidates, as integers that order as they do.
//
// The slices depend on D alone, so a row's bits do not depend on the rows beside it.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
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
constexpr int kExpertsMax = 1024;
constexpr std::int64_t kFewTokensMax = 64;  // beyond, every tile of experts reads too much of x
constexpr float kTiny = 1e-20F;             // keeps a sum of zeros from dividing by zero

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

// Few rows.  Grid: tiles of 16 experts, slices.  Lane 4 g + q of a warp reads 16 bytes of rows g
// and g + 8: the order of columns within a product is free if both operands have the same.
constexpr int kFewWarps = 8;
constexpr int kFewExperts = 16;
constexpr int kWarpColumns = kSliceColumns / kFewWarps;
constexpr int kPackColumns = 8;                          // 16 bytes of bfloat16
constexpr int kPacks = kWarpColumns / kPackColumns / 4;  // of a lane and row
constexpr int kStagePacks = 2;  // 64 columns are summed apart, as RowProduct does
constexpr int kStages = kFewWarps * kPacks / kStagePacks;

// A lane's packs of one row, zeros beyond its end.
__device__ void LoadRow(const void* matrix, std::int64_t row_stride, int row, int rows, int column,
                        int columns, uint4 (&packs)[kPacks]) {
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int first = column + i * 4 * kPackColumns;
    packs[i] = make_uint4(0, 0, 0, 0);
    if (row < rows && first < columns) {
      packs[i] = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(matrix) +
                                                 row * row_stride + first);
    }
  }
}

template <int kTiles>  // of eight tokens, at a time
__global__ __launch_bounds__(kThreads) void FewGateLogitsKernel(
    const __grid_constant__ GateParams p, float* logits) {
  __shared__ float sums[kStages][kTiles * 8][kFewExperts + 1];
  cuda::ptx::AllowSuccessor();
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int experts = static_cast<int>(p.weight.rows);
  const int tokens = static_cast<int>(p.x.rows);
  const int columns = static_cast<int>(p.x.cols);
  const int first_expert = static_cast<int>(blockIdx.x) * kFewExperts;
  const int column =
      static_cast<int>(blockIdx.y) * kSliceColumns + warp * kWarpColumns + lane % 4 * kPackColumns;
  uint4 low[kPacks];
  uint4 high[kPacks];
  LoadRow(p.weight.data, p.weight.row_stride, first_expert + lane / 4, experts, column, columns,
          low);
  LoadRow(p.weight.data, p.weight.row_stride, first_expert + lane / 4 + 8, experts, column, columns,
          high);
  cuda::ptx::WaitForPredecessors();
  for (int first = 0; first < tokens; first += kTiles * 8) {
    uint4 x[kTiles][kPacks];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      LoadRow(p.x.data, p.x.row_stride, first + tile * 8 + lane / 4, tokens, column, columns,
              x[tile]);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int stage = 0; stage < kPacks / kStagePacks; ++stage) {
        float sum[4] = {};
#pragma unroll
        for (int i = stage * kStagePacks; i < (stage + 1) * kStagePacks; ++i) {
          cuda::ptx::MmaBf16(sum, {low[i].x, high[i].x, low[i].y, high[i].y}, x[tile][i].x,
                             x[tile][i].y);
          cuda::ptx::MmaBf16(sum, {low[i].z, high[i].z, low[i].w, high[i].w}, x[tile][i].z,
                             x[tile][i].w);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[warp * (kPacks / kStagePacks) + stage][tile * 8 + lane % 4 * 2 + i % 2]
              [lane / 4 + i / 2 * 8] = sum[i];
        }
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTiles * 8 * kFewExperts; i += kThreads) {
      const int token = i / kFewExperts;
      const int expert = i % kFewExperts;
      float sum = 0.0F;
#pragma unroll
      for (int stage = 0; stage < kStages; ++stage) {
        sum += sums[stage][token][expert];
      }
      if (first + token < tokens && first_expert + expert < experts) {
        logits[(blockIdx.y * p.x.rows + first + token) * experts + first_expert + expert] = sum;
      }
    }
    __syncthreads();
  }
}

// Candidates are finite: NaN and -inf count as the lowest finite value.
__device__ float AsCandidate(float value) {
  return value > -FLT_MAX ? value : -FLT_MAX;
}

// Orders candidates as unsigned integers; -0 equals +0.  Never 0, which marks what may not be
// chosen.
__device__ unsigned KeyOf(float value) {
  const unsigned bits = __float_as_uint(value == 0.0F ? 0.0F : value);
  const auto sign = static_cast<unsigned>(static_cast<int>(bits) >> 31);
  return bits ^ (sign | 0x80000000U);
}

// The id of the largest key of the warp's candidates, of which a lane has 32 i + lane in keys[i];
// the lower id on ties.  It is taken out.
template <int kPerLane>
__device__ int TakeLargest(unsigned (&keys)[kPerLane], int lane) {
  unsigned best = 0;
  int place = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (keys[i] > best) {
      best = keys[i];
      place = i;
    }
  }
  const unsigned largest = __reduce_max_sync(cuda::kAllLanes, best);
  const auto own = static_cast<unsigned>(place * cuda::kWarpSize + lane);
  const auto id =
      static_cast<int>(__reduce_min_sync(cuda::kAllLanes, best == largest ? own : 0xFFFFFFFFU));
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (i * cuda::kWarpSize + lane == id) {
      keys[i] = 0;
    }
  }
  return id;
}

// The sum of the two largest of values[0, count), by `lanes` adjacent lanes, a power of two.
__device__ float SumOfTwoLargest(const float* values, int count, int lanes, int lane) {
  float first = -FLT_MAX;
  float second = -FLT_MAX;
  for (int i = lane % lanes; i < count; i += lanes) {
    second = fmaxf(second, fminf(first, values[i]));
    first = fmaxf(first, values[i]);
  }
  for (int offset = 1; offset < lanes; offset *= 2) {
    const float other_first = __shfl_xor_sync(cuda::kAllLanes, first, offset);
    const float other_second = __shfl_xor_sync(cuda::kAllLanes, second, offset);
    second = fmaxf(fmaxf(second, other_second), fminf(first, other_first));
    first = fmaxf(first, other_first);
  }
  return count == 1 ? first : AsCandidate(first + second);
}

// Marks the experts of all but the best groups.  Leaves other values in `biased`.
template <int kPerLane>
__device__ void DropGroups(const GateParams& p, float* biased, int lane,
                           unsigned (&keys)[kPerLane]) {
  const int groups = static_cast<int>(p.groups);
  const int size = static_cast<int>(p.weight.rows) / groups;
  int lanes = 1;  // of a group
  while (2 * lanes * groups <= cuda::kWarpSize) {
    lanes *= 2;
  }
  unsigned group_keys[kPerLane] = {};
  const int at_once = cuda::kWarpSize / lanes;
  for (int first = 0; first < groups; first += at_once) {
    const int group = first + lane / lanes;
    const float score =
        SumOfTwoLargest(biased + group * size, group < groups ? size : 0, lanes, lane);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int wanted = i * cuda::kWarpSize + lane - first;  // its place among these
      const float value =
          __shfl_sync(cuda::kAllLanes, score, max(0, min(wanted, at_once - 1)) * lanes);
      if (wanted >= 0 && wanted < at_once && first + wanted < groups) {
        group_keys[i] = KeyOf(value);
      }
    }
  }
  for (int i = 0; i < static_cast<int>(p.groups_kept); ++i) {
    TakeLargest(group_keys, lane);
  }
  __syncwarp();  // the biased scores were read
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (i * cuda::kWarpSize + lane < groups) {
      biased[i * cuda::kWarpSize + lane] = group_keys[i] == 0 ? 1.0F : 0.0F;  // kept
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * cuda::kWarpSize + lane;
    keys[i] = e < groups * size && biased[e / size] != 0.0F ? keys[i] : 0U;
  }
}

template <int kPerLane>  // experts
__global__ __launch_bounds__(kChooseWarps* cuda::kWarpSize) void ChooseExpertsKernel(
    const __grid_constant__ GateParams p, const float* logits, int slices) {
  __shared__ float shared_scores[kChooseWarps][kPerLane * cuda::kWarpSize];
  __shared__ float shared_biased[kChooseWarps][kPerLane * cuda::kWarpSize];
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  cuda::StartAfterPredecessors();
  const std::int64_t token = blockIdx.x * std::int64_t{kChooseWarps} + warp;
  if (token >= p.x.rows) {
    return;
  }
  const int experts = static_cast<int>(p.weight.rows);
  float* scores = shared_scores[warp];
  float* biased = shared_biased[warp];

  // Scores.
  float sums[kPerLane] = {};
  for (int slice = 0; slice < slices; ++slice) {
    const float* part = logits + (slice * p.x.rows + token) * experts;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int e = i * cuda::kWarpSize + lane;
      sums[i] += e < experts ? part[e] : 0.0F;
    }
  }
  unsigned keys[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * cuda::kWarpSize + lane;
    keys[i] = 0;
    if (e < experts) {
      scores[e] = 1.0F / (1.0F + expf(-sums[i]));
      biased[e] = AsCandidate(scores[e] + p.bias.data[e]);
      keys[i] = KeyOf(biased[e]);
    }
  }
  __syncwarp();
  if (p.groups_kept < p.groups) {
    DropGroups(p, biased, lane, keys);
  }

  // Choice.
  const int chosen = static_cast<int>(p.experts.cols);
  float sum = 0.0F;
  for (int k = 0; k < chosen; ++k) {
    const int id = TakeLargest(keys, lane);
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

void LaunchFewLogits(const GateParams& params, float* logits, cudaStream_t stream) {
  constexpr int kTiles = 4;
  const cuda::LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>((params.weight.rows + kFewExperts - 1) / kFewExperts),
                   static_cast<unsigned>(Slices(params.x.cols))),
      .threads = kThreads};
  params.x.rows <= 8
      ? cuda::LaunchDependent(FewGateLogitsKernel<1>, shape, stream, params, logits)
      : cuda::LaunchDependent(FewGateLogitsKernel<kTiles>, shape, stream, params, logits);
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
      static_cast<unsigned>(Slices(params.x.cols)));
  GateLogitsKernel<kTokens><<<grid, kThreads, Product::kSharedBytes, stream>>>(
      params, logits, cuda::HasAlignedRows(params.x) && cuda::HasAlignedRows(params.weight));
}

void LaunchChoice(const GateParams& params, const float* logits, cudaStream_t stream) {
  const cuda::LaunchShape shape = {
      .grid = static_cast<unsigned>((params.x.rows + kChooseWarps - 1) / kChooseWarps),
      .threads = kChooseWarps * cuda::kWarpSize};
  const int slices = static_cast<int>(Slices(params.x.cols));
  params.weight.rows <= 256
      ? cuda::LaunchDependent(ChooseExpertsKernel<8>, shape, stream, params, logits, slices)
      : cuda::LaunchDependent(ChooseExpertsKernel<kExpertsMax / cuda::kWarpSize>, shape, stream,
                              params, logits, slices);
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
  DSA_CHECK(extents.experts <= kExpertsMax, "Gate: E={}, limit {}", extents.experts, kExpertsMax);
  if (extents.tokens == 0) {
    return;
  }
  cuda::ScratchArena arena(state_->scratch);
  float* logits = TakeLogits(arena, extents.tokens, extents.hidden, extents.experts);
  arena.CheckFits("Gate");

  const bool is_bf16 = params.x.type == DataType::kBf16 && params.weight.type == DataType::kBf16;
  if (!is_bf16) {
    LaunchPlainLogits(params, logits, state_->stream);
  } else if (extents.tokens <= kFewTokensMax && extents.hidden % kPackColumns == 0 &&
             cuda::HasAlignedRows(params.x) && cuda::HasAlignedRows(params.weight)) {
    LaunchFewLogits(params, logits, state_->stream);
  } else {
    LaunchLogits(params, logits, state_->stream);
  }
  DSA_CUDA_CHECK(cudaGetLastError());
  LaunchChoice(params, logits, state_->stream);
}

}  // namespace dsa
