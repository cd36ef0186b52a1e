// ExpandFp8: values of heads from fp8 weights, and their fp8 copy.  A block computes 128 values of
// a head for kTokens tokens,
//
//   A   weights   [128 values, 512]      wgmma.m64n<kTokens>k16, a warpgroup has 64 values
//   B   latents   [kTokens, 512]
//
// The weights come to shared memory by tensor map, as they are stored, and from there to registers
// as bfloat16, which is exact: all of it before the kernels ahead have ended, but for one warp's
// part.  When the latents are there, little but products is left to do.
//
// Sums over 128 columns, those of one scale, are added up in float32, times the scale.  With few
// rows the weights' H V 512 bytes are the bound.  A result's bits depend on its row and weights
// alone: not on kTokens.
#include "kernels/cuda/attend_latent.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/expanded_values.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/ptx/copy_box.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/cuda/ptx/wgmma_bf16_registers.cuh"
#include "kernels/cuda/weight_map.h"
#include "kernels/kv_layout.h"

namespace dsa::cuda {
namespace {

constexpr int kThreads = kExpandedThreads;
constexpr int kValues = kExpandedValues;
constexpr int kGroupColumns = kValuesPerScale;
constexpr int kGroups = kLatentValues / kGroupColumns;
constexpr int kBoxColumns = kLatentBoxColumns;
constexpr int kBoxes = kLatentValues / kBoxColumns;
constexpr int kStepColumns = 16;  // of a product
constexpr int kSteps = kGroupColumns / kStepColumns;
constexpr int kWeightBytes = kValues * kGroupColumns;  // of a group
constexpr int kAlignment = 1024;                       // of swizzled tiles

template <int kTokens>
struct Tile {
  static constexpr int kBoxBytes = kTokens * kBoxColumns * 2;
  static constexpr int kWeights = 0;
  static constexpr int kLatents = kGroups * kWeightBytes;
  static constexpr int kResults = kLatents + kBoxes * kBoxBytes;
  static constexpr int kBytes = kResults + kTokens * kExpandedStride * 2;
  static constexpr int kSharedBytes = kAlignment + kBytes;
  static constexpr int kSums = kTokens / 2;  // of a thread
};

struct Maps {
  CUtensorMap weights;  // [heads * values, 512]
  CUtensorMap latents;  // [heads, tokens, 512]
};
struct Barriers {
  std::uint64_t weights[kGroups];
  std::uint64_t latents[kGroups];
};
struct Weights {
  unsigned words[kGroups][kSteps][4];  // a lane's part of its warp's 16 values
  float scales[kGroups];
};

// Two e4m3 codes as bfloat16; exact.
__device__ unsigned ToBf16Pair(unsigned codes) {
  const float2 values = __half22float2(
      __half2(__nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(codes), __NV_E4M3)));
  return Bf16PairOf(values.x, values.y);
}

__device__ void ReadWeights(const std::uint8_t* weights, const Barriers& barriers, Weights& read) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int g = static_cast<int>(threadIdx.x) % kWarpSize / 4;
  const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    ptx::BarrierWait(ptx::SharedAddress(&barriers.weights[group]), 0);
    const std::uint8_t* const row = weights + group * kWeightBytes + (warp * 16 + g) * 128 + 2 * q;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      // The 16 bytes of a step lie where the swizzle puts them in this row and the one 8 below.
      const std::uint8_t* const at = row + (step ^ g) * 16;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        read.words[group][step][i] =
            ToBf16Pair(*reinterpret_cast<const std::uint16_t*>(at + i % 2 * (8 * 128) + i / 2 * 8));
      }
    }
  }
}

template <int kSums>
__device__ void Begin(const Barriers& barriers, const Weights& weights, unsigned latents, int group,
                      float (&partial)[kSums]) {
  constexpr int kTokens = kSums * 2;
  ptx::BarrierWait(ptx::SharedAddress(&barriers.latents[group]), 0);
  ptx::PinRegisters(partial);
  ptx::WgmmaFence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    constexpr int kBoxSteps = kBoxColumns / kStepColumns;
    const int box = group * (kGroupColumns / kBoxColumns) + step / kBoxSteps;
    const std::uint64_t b = ptx::SwizzledTile(latents + box * Tile<kTokens>::kBoxBytes);
    ptx::WgmmaBf16Registers<kTokens>::Run(partial, weights.words[group][step],
                                          b + 2 * (step % kBoxSteps), step > 0);
  }
  ptx::WgmmaCommit();
}

// Rounded results to rows of shared memory.
template <int kTokens>
__device__ void Multiply(const Barriers& barriers, const Weights& weights, unsigned latents,
                         unsigned results) {
  constexpr int kSums = Tile<kTokens>::kSums;
  float total[kSums] = {};
  float partials[2][kSums];
  Begin(barriers, weights, latents, 0, partials[0]);
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    if (group + 1 < kGroups) {
      Begin(barriers, weights, latents, group + 1, partials[(group + 1) % 2]);
      ptx::WgmmaWait<1>();
    } else {
      ptx::WgmmaWait<0>();
    }
    ptx::PinRegisters(partials[group % 2]);
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      total[i] = fmaf(partials[group % 2][i], weights.scales[group], total[i]);
    }
  }
  // Lane 8 i + r names row r of matrix i: of two times eight values for two times eight tokens.
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int value = warp * 16 + lane / 8 % 2 * 8;
#pragma unroll
  for (int j = 0; j < kTokens / 8; j += 2) {
    unsigned words[4];
    RoundToMatrices(total, j, words);
    const int token = (j + lane / 16) * 8 + lane % 8;
    ptx::StoreMatricesTransposed(results + (token * kExpandedStride + value) * 2, words);
  }
}

// By one thread.
template <int kTokens>
__device__ void LoadLatents(const CUtensorMap& map, const Barriers& barriers, unsigned latents,
                            int first_token, int head) {
  constexpr int kBoxesOfGroup = kBoxes / kGroups;
  constexpr int kBoxBytes = Tile<kTokens>::kBoxBytes;
  ptx::WaitForPredecessors();  // for the block: all else follows from what is read here
  for (int box = 0; box < kBoxes; ++box) {
    const unsigned barrier = ptx::SharedAddress(&barriers.latents[box / kBoxesOfGroup]);
    if (box % kBoxesOfGroup == 0) {
      ptx::BarrierExpect(barrier, kBoxesOfGroup * kBoxBytes);  // zeros beyond an end included
    }
    ptx::CopyBox(latents + box * kBoxBytes, map, barrier,
                 ptx::At3{box * kBoxColumns, first_token, head});
  }
}

// Grid: ExpandedGrid.
template <int kTokens>
__global__ __launch_bounds__(kThreads, 1) void ExpandFp8Kernel(
    const __grid_constant__ Maps maps, const float* __restrict__ scales,
    const __grid_constant__ ExpandedOutput output) {
  extern __shared__ std::uint8_t dynamic[];
  __shared__ Barriers barriers;
  using Tile = Tile<kTokens>;
  ptx::AllowSuccessor();
  const unsigned begin = ptx::SharedAddress(dynamic);
  const unsigned tile = (begin + kAlignment - 1) / kAlignment * kAlignment;
  const int head = static_cast<int>(blockIdx.x);
  const int first_token = static_cast<int>(blockIdx.y) * kTokens;
  const int first_value = static_cast<int>(blockIdx.z) * kValues;
  const int first_row = static_cast<int>(head * output.head_values) + first_value;  // of weights
  const bool is_loader = threadIdx.x == 0;
  if (is_loader) {
    for (int group = 0; group < kGroups; ++group) {
      ptx::BarrierInit(ptx::SharedAddress(&barriers.weights[group]), 1);
      ptx::BarrierInit(ptx::SharedAddress(&barriers.latents[group]), 1);
    }
    ptx::BarrierInitFence();
    ptx::AsyncProxyFence();
    for (int group = 0; group < kGroups; ++group) {
      const unsigned barrier = ptx::SharedAddress(&barriers.weights[group]);
      ptx::BarrierExpect(barrier, kWeightBytes);
      ptx::CopyBox(tile + Tile::kWeights + group * kWeightBytes, maps.weights, barrier,
                   ptx::At2{group * kGroupColumns, first_row});
    }
  }
  __syncthreads();
  // Its warp reads its weights behind that, the others theirs before.  A warp of its own for this
  // would leave the products too few registers.
  if (is_loader) {
    LoadLatents<kTokens>(maps.latents, barriers, tile + Tile::kLatents, first_token, head);
  }
  __syncwarp();
  Weights weights;
  const float4 of_groups = *reinterpret_cast<const float4*>(scales + std::int64_t{first_row} /
                                                                         kValuesPerScale * kGroups);
  weights.scales[0] = of_groups.x;
  weights.scales[1] = of_groups.y;
  weights.scales[2] = of_groups.z;
  weights.scales[3] = of_groups.w;
  ReadWeights(dynamic + (tile - begin) + Tile::kWeights, barriers, weights);
  Multiply<kTokens>(barriers, weights, tile + Tile::kLatents, tile + Tile::kResults);
  __syncthreads();
  StoreExpanded<kTokens>(
      output, reinterpret_cast<const __nv_bfloat16*>(dynamic + (tile - begin) + Tile::kResults),
      first_value, first_token, head);
}

template <int kTokens>
Maps MapsOf(const ExpandValueParams& params, const ExpandValueExtents& extents) {
  return {.weights = WeightMap({.data = static_cast<const Fp8E4m3*>(params.w_uv.data),
                                .rows = extents.heads * extents.value,
                                .cols = kLatentValues,
                                .row_stride = params.w_uv.head_stride},
                               kValues),
          .latents = LatentMap(params, kTokens)};
}

template <int kTokens>
void Launch(const ExpandValueParams& params, const ExpandValueExtents& extents,
            const QuantizedView& fp8, cudaStream_t stream) {
  static PerDevice attribute;
  attribute.Once([] {
    return cudaFuncSetAttribute(ExpandFp8Kernel<kTokens>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                Tile<kTokens>::kSharedBytes);
  });
  LaunchDependent(ExpandFp8Kernel<kTokens>,
                  {.grid = ExpandedGrid(extents, kTokens),
                   .threads = kThreads,
                   .shared_bytes = Tile<kTokens>::kSharedBytes},
                  stream, MapsOf<kTokens>(params, extents), params.w_uv_scales.data,
                  ExpandedOutputOf(params, fp8));
}

}  // namespace

void ExpandFp8(const ExpandValueParams& params, const QuantizedView& fp8, cudaStream_t stream) {
  const ExpandValueExtents extents = Validate(params);
  DSA_CHECK(HasAlignedRows(params.o_latent) && HasAlignedRows(params.w_uv),
            "ExpandValue: o_latent and fp8 w_uv need rows at multiples of 16 bytes");
  DSA_CHECK(reinterpret_cast<std::uintptr_t>(params.w_uv_scales.data) % sizeof(float4) == 0,
            "ExpandValue: w_uv_scales must start at a multiple of 16 bytes");
  if (fp8.values.data != nullptr) {
    DSA_CHECK(params.o.head_stride == extents.value, "ExpandFp8: heads of o are {} values apart",
              params.o.head_stride);
    ValidateCopy(params, fp8);
  }
  if (extents.tokens == 0 || extents.value == 0) {
    return;
  }
  if (extents.tokens <= 16) {
    Launch<16>(params, extents, fp8, stream);
  } else if (extents.tokens <= 32) {
    Launch<32>(params, extents, fp8, stream);
  } else {
    Launch<64>(params, extents, fp8, stream);
  }
}

}  // namespace dsa::cuda
