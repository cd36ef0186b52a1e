// ExpandAndQuantize: values of heads and their fp8 copy.  A block computes 128 values of a head for
// 64 tokens,
//
//   A   latents   [64 tokens, 512]    wgmma.m64n128k16, 64 columns at a time
//   B   weights   [128 values, 512]
//
// whose operands lie in shared memory all at once, 192 KB by tensor map: the weights are asked for
// before the kernels ahead have ended.  The products of 64 columns are added up in float32.
//
// With few rows the weights' 2 H V 512 bytes are the bound.  A result's bits depend on its row and
// weights alone.
#include "kernels/cuda/attend_latent.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/expanded_values.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/ptx/copy_box.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/cuda/ptx/wgmma_bf16.cuh"
#include "kernels/cuda/weight_map.h"
#include "kernels/kv_layout.h"

namespace dsa::cuda {
namespace {

constexpr int kThreads = kExpandedThreads;  // the first warpgroup multiplies, both store
constexpr int kWarpgroup = 128;
constexpr int kTokens = 64;
constexpr int kValues = kExpandedValues;
constexpr int kStageColumns = kLatentBoxColumns;
constexpr int kStages = kLatentValues / kStageColumns;
constexpr int kWeightBytes = kValues * kStageColumns * 2;  // of a stage
constexpr int kLatentBytes = kTokens * kStageColumns * 2;
constexpr int kStageBytes = kWeightBytes + kLatentBytes;
constexpr int kAlignment = 1024;  // of swizzled tiles
constexpr int kSharedBytes = kAlignment + kStages * kStageBytes;
constexpr int kRowStride = kExpandedStride;  // of rounded results, in the place of latents
static_assert(kTokens * kRowStride * 2 <= kStages * kLatentBytes);

struct Maps {
  CUtensorMap weights;  // [heads, values, 512]
  CUtensorMap latents;  // [heads, tokens, 512]
};

// Everything a block reads.  One thread.
__device__ void Load(const Maps& maps, const std::uint64_t* full, unsigned weights,
                     unsigned latents, int first_value, int first_token, int head) {
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    const unsigned barrier = ptx::SharedAddress(full + stage);
    ptx::BarrierExpect(barrier, kStageBytes);  // what is beyond an end comes as zeros
    ptx::CopyBox(weights + stage * kWeightBytes, maps.weights, barrier,
                 ptx::At3{stage * kStageColumns, first_value, head});
  }
  ptx::WaitForPredecessors();  // for the block: all else follows from what is read here
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    ptx::CopyBox(latents + stage * kLatentBytes, maps.latents, ptx::SharedAddress(full + stage),
                 ptx::At3{stage * kStageColumns, first_token, head});
  }
}

__device__ void Begin(const std::uint64_t* full, unsigned weights, unsigned latents, int stage,
                      float (&partial)[64]) {
  ptx::BarrierWait(ptx::SharedAddress(full + stage), 0);
  const std::uint64_t a = ptx::SwizzledTile(latents + stage * kLatentBytes);
  const std::uint64_t b = ptx::SwizzledTile(weights + stage * kWeightBytes);
  ptx::PinRegisters(partial);
  ptx::WgmmaFence();
#pragma unroll
  for (int k = 0; k < kStageColumns / 16; ++k) {
    ptx::WgmmaBf16(partial, a + 2 * k, b + 2 * k, k > 0);
  }
  ptx::WgmmaCommit();
}
__device__ void Add(float (&partial)[64], float (&total)[64]) {
  ptx::PinRegisters(partial);
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    total[i] += partial[i];
  }
}

// By the first warpgroup: rounded results to rows of shared memory.
__device__ void Multiply(const std::uint64_t* full, unsigned weights, unsigned latents) {
  float total[64] = {};
  float partials[2][64];
  Begin(full, weights, latents, 0, partials[0]);
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    if (stage + 1 < kStages) {
      Begin(full, weights, latents, stage + 1, partials[(stage + 1) % 2]);
      ptx::WgmmaWait<1>();
    } else {
      ptx::WgmmaWait<0>();
    }
    Add(partials[stage % 2], total);
  }
  // Lane 8 i + r names row r of matrix i, of which two stand below one another.
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int token = warp * 16 + lane / 8 % 2 * 8 + lane % 8;
  // The rows of other warps' latents are read until here.
  ptx::NamedBarrierSync(1, kWarpgroup);
#pragma unroll
  for (int j = 0; j < kValues / 8; j += 2) {
    unsigned words[4];
    RoundToMatrices(total, j, words);
    ptx::StoreMatrices(latents + (token * kRowStride + (j + lane / 16) * 8) * 2, words);
  }
}

// Grid: ExpandedGrid.
__global__ __launch_bounds__(kThreads, 1) void ExpandAndQuantizeKernel(
    const __grid_constant__ Maps maps, const __grid_constant__ ExpandedOutput output) {
  extern __shared__ std::uint8_t dynamic[];
  __shared__ std::uint64_t full[kStages];
  ptx::AllowSuccessor();
  const unsigned begin = ptx::SharedAddress(dynamic);
  const unsigned weights = (begin + kAlignment - 1) / kAlignment * kAlignment;
  const unsigned latents = weights + kStages * kWeightBytes;
  const int head = static_cast<int>(blockIdx.x);
  const int first_token = static_cast<int>(blockIdx.y) * kTokens;
  const int first_value = static_cast<int>(blockIdx.z) * kValues;
  if (threadIdx.x == kWarpgroup) {
    for (const std::uint64_t& barrier : full) {
      ptx::BarrierInit(ptx::SharedAddress(&barrier), 1);
    }
    ptx::BarrierInitFence();
    ptx::AsyncProxyFence();
  }
  __syncthreads();
  if (threadIdx.x == kWarpgroup) {
    Load(maps, full, weights, latents, first_value, first_token, head);
  } else if (threadIdx.x < kWarpgroup) {
    Multiply(full, weights, latents);
  }
  __syncthreads();
  StoreExpanded<kTokens>(output,
                         reinterpret_cast<const __nv_bfloat16*>(dynamic + (latents - begin)),
                         first_value, first_token, head);
}

Maps MapsOf(const ExpandValueParams& params, const ExpandValueExtents& extents) {
  const MapAxis weights[] = {
      {.extent = kLatentValues, .stride = 1, .box = kStageColumns},
      {.extent = extents.value, .stride = params.w_uv.head_stride, .box = kValues},
      {.extent = extents.heads, .stride = params.w_uv.row_stride, .box = 1}};
  return {.weights = Bf16Map(params.w_uv.data, weights), .latents = LatentMap(params, kTokens)};
}

bool IsTaken(const ExpandValueParams& params, const ExpandValueExtents& extents,
             const QuantizedView& fp8) {
  return params.o_latent.type == DataType::kBf16 && params.w_uv.type == DataType::kBf16 &&
         fp8.values.data != nullptr && extents.value % kValues == 0 &&
         params.o.head_stride == extents.value && HasAlignedRows(params.o_latent) &&
         HasAlignedRows(params.w_uv);
}

}  // namespace

void ValidateCopy(const ExpandValueParams& expand, const QuantizedView& fp8) {
  const AnyMatrix o{.data = expand.o.data,
                    .type = expand.o.type,
                    .rows = expand.o.rows,
                    .cols = expand.o.heads * expand.o.cols,
                    .row_stride = expand.o.row_stride};
  Validate(QuantizeFp8Params{
      .x = o, .values = fp8.values, .scales = fp8.scales, .scale_format = fp8.format});
}

bool ExpandAndQuantize(const ExpandValueParams& expand, const QuantizedView& fp8,
                       cudaStream_t stream) {
  const ExpandValueExtents extents = Validate(expand);
  if (!IsTaken(expand, extents, fp8)) {
    return false;
  }
  ValidateCopy(expand, fp8);
  if (extents.tokens == 0 || extents.value == 0) {
    return true;
  }
  static PerDevice attribute;
  attribute.Once([] {
    return cudaFuncSetAttribute(ExpandAndQuantizeKernel,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  });
  LaunchDependent(
      ExpandAndQuantizeKernel,
      {.grid = ExpandedGrid(extents, kTokens), .threads = kThreads, .shared_bytes = kSharedBytes},
      stream, MapsOf(expand, extents), ExpandedOutputOf(expand, fp8));
  return true;
}

}  // namespace dsa::cuda
