// RoutedExperts: pairs (token, k) sorted by expert on the device, products over tiles of the pairs
// of one expert, and a sum per token.
//
//   1. Sort      one block: counts, offsets, the pairs of each expert one after the other, and a
//                list of tiles {expert, first, count}; the grid of the products has room for the
//                longest list there can be, and what is beyond the list's end returns at once
//   2. Quantize  x, for fp8 experts
//   3. Inner     gate and up, rows of x gathered by token
//   4. Activate  SwiGLU, and quantized for fp8 experts
//   5. Outer     down, each row to its pair's place
//   6. Combine   a token's contributions in the gate's order, then the shared expert's output; not
//                where they are left
//
// An id outside [0, E) belongs to another rank: it is no pair here and adds nothing.  No result
// depends on the order of an expert's pairs.  Tokens go through in passes, as many as scratch is
// for.  fp8 and bfloat16 weights run on the tensor cores; with float32 in either operand the
// products are float32 without them.
#include "common/view_parts.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/pair_sort.cuh"
#include "kernels/cuda/plain_product.cuh"
#include "kernels/cuda/resident_experts.h"
#include "kernels/cuda/row_product.cuh"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/cuda/swiglu.cuh"
#include "kernels/ops/quantize_fp8.h"
#include "kernels/ops/routed_experts.h"
#include "kernels/ops/swiglu.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kPassTokens = 4096;  // of bfloat16; half as many of float32
constexpr int kTileTokensMin = 8;

// Scratch of a pass over T tokens, P = T * K pairs.
struct Regions {
  cuda::SortedPairs sorted;
  Fp8E4m3* inputs;              // [T, D]
  float* input_scales;          // [T, D / 128]
  std::uint8_t* gate;           // [P, I]  of the activation type
  std::uint8_t* up;             // [P, I]
  Fp8E4m3* inner;               // [P, I]
  float* inner_scales;          // [P, I / 128]
  std::uint8_t* contributions;  // [P, D]  by pair, of the type of y
};

struct PassShape {
  std::int64_t tokens, hidden, width, experts, per_token, element_bytes, output_bytes;
  std::int64_t pairs() const { return tokens * per_token; }
  std::int64_t Tiles(std::int64_t tile_tokens) const {
    return std::min(pairs(), pairs() / tile_tokens + experts);
  }
};

Regions TakeRegions(cuda::ScratchArena& arena, const PassShape& shape) {
  const std::int64_t pairs = shape.pairs();
  return {.sorted = cuda::TakeSortedPairs(arena, shape.Tiles(kTileTokensMin), pairs),
          .inputs = arena.Take<Fp8E4m3>(shape.tokens * shape.hidden),
          .input_scales = arena.Take<float>(shape.tokens * Fp8Blocks(shape.hidden)),
          .gate = arena.Take<std::uint8_t>(pairs * shape.width * shape.element_bytes),
          .up = arena.Take<std::uint8_t>(pairs * shape.width * shape.element_bytes),
          .inner = arena.Take<Fp8E4m3>(pairs * shape.width),
          .inner_scales = arena.Take<float>(pairs * Fp8Blocks(shape.width)),
          .contributions = arena.Take<std::uint8_t>(pairs * shape.hidden * shape.output_bytes)};
}

std::int64_t PassTokens(std::int64_t element_bytes) {
  return kPassTokens * 2 / element_bytes;
}

__global__ __launch_bounds__(cuda::kSortThreads) void SortPairsKernel(cuda::PairChoice choice,
                                                                      int tile_tokens,
                                                                      int tiles_max,
                                                                      cuda::SortedPairs sorted) {
  cuda::SortPairs(choice, tile_tokens, tiles_max, sorted);
}

// One projection of tiles of pairs.  Row i of the sorted pairs reads row x_rows[i] of x and writes
// row y_rows[i] of y; null: row i.
struct Projection {
  StackedWeight weight[2];  // gate and up, or down alone
  const cuda::PairTile* tiles;
  const void* x;
  std::int64_t x_stride;  // in elements
  const float* x_scales;
  std::int64_t x_scale_stride;
  const std::int32_t* x_rows;
  void* y[2];
  const std::int32_t* y_rows;
};

// Grid: tiles of the weight's rows, tiles of pairs, projections.
template <typename Element, int kTokens, typename Y>
__global__ __launch_bounds__(kThreads) void ProjectKernel(const __grid_constant__ Projection p,
                                                          bool is_aligned) {
  using Product = cuda::RowProduct<Element, kTokens>;
  extern __shared__ __align__(16) std::uint8_t shared[];
  const cuda::PairTile tile = p.tiles[blockIdx.y];
  if (tile.count == 0) {
    return;
  }
  const StackedWeight& weight = p.weight[blockIdx.z];
  const std::int64_t first_row = blockIdx.x * std::int64_t{Product::kWeightRows};
  const std::int64_t row_bytes = weight.cols * static_cast<std::int64_t>(sizeof(Element));
  const std::int64_t x_stride = p.x_stride * static_cast<std::int64_t>(sizeof(Element));
  const std::int64_t scale_cols = (weight.cols + kValuesPerScale - 1) / kValuesPerScale;
  const std::int64_t scale_rows = (weight.rows + kValuesPerScale - 1) / kValuesPerScale;
  const std::int64_t direct = p.x_rows == nullptr ? tile.first : 0;
  Y* output = static_cast<Y*>(p.y[blockIdx.z]) + first_row;
  Product::Run(
      shared,
      {.weight = static_cast<const std::uint8_t*>(weight.data) +
                 (tile.expert * weight.rows + first_row) * row_bytes,
       .weight_stride = row_bytes,
       .weight_rows =
           static_cast<int>(min(weight.rows - first_row, std::int64_t{Product::kWeightRows})),
       .weight_scales = weight.scales + (tile.expert * scale_rows + blockIdx.x) * scale_cols,
       .x = static_cast<const std::uint8_t*>(p.x) + direct * x_stride,
       .x_stride = x_stride,
       .x_rows = p.x_rows == nullptr ? nullptr : p.x_rows + tile.first,
       .tokens = tile.count,
       .x_scales = p.x_scales + direct * p.x_scale_stride,
       .x_scale_stride = p.x_scale_stride,
       .row_bytes = row_bytes,
       .is_aligned = is_aligned},
      [&](int token, int row, float value) {
        const std::int64_t y_row =
            p.y_rows == nullptr ? tile.first + token : p.y_rows[tile.first + token];
        output[y_row * weight.rows + row] = cuda::FromFloat<Y>(value);
      });
}

template <typename X, typename W, typename Y>
__global__ __launch_bounds__(kThreads) void PlainProjectKernel(
    const __grid_constant__ Projection p) {
  using Product = cuda::PlainProduct<X, W>;
  __shared__ typename Product::Shared shared;
  const cuda::PairTile tile = p.tiles[blockIdx.y];
  const StackedWeight& weight = p.weight[blockIdx.z];
  const std::int64_t first_row = blockIdx.x * std::int64_t{Product::kWeightRows};
  Y* output = static_cast<Y*>(p.y[blockIdx.z]) + first_row;
  for (int done = 0; done < tile.count; done += Product::kTokens) {
    const int first = tile.first + done;
    const std::int64_t direct = p.x_rows == nullptr ? first : 0;
    Product::Run(
        shared,
        {.weight = static_cast<const W*>(weight.data) +
                   (tile.expert * weight.rows + first_row) * weight.cols,
         .weight_stride = weight.cols,
         .weight_column_stride = 1,
         .weight_rows =
             static_cast<int>(min(weight.rows - first_row, std::int64_t{Product::kWeightRows})),
         .x = static_cast<const X*>(p.x) + direct * p.x_stride,
         .x_stride = p.x_stride,
         .x_rows = p.x_rows == nullptr ? nullptr : p.x_rows + first,
         .tokens = min(tile.count - done, Product::kTokens),
         .columns = static_cast<int>(weight.cols)},
        [&](int token, int row, float value) {
          const std::int64_t y_row = p.y_rows == nullptr ? first + token : p.y_rows[first + token];
          output[y_row * weight.rows + row] = cuda::FromFloat<Y>(value);
        });
  }
}

// A thread per value of y: the token's contributions in order.
template <typename T>
__global__ __launch_bounds__(kThreads) void CombineKernel(
    const __grid_constant__ RoutedExpertsParams p, const T* contributions) {
  const std::int64_t token = blockIdx.y;
  const std::int64_t column = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (column >= p.x.cols) {
    return;
  }
  const std::int64_t per_token = p.experts.cols;
  float sum = 0.0F;
  for (std::int64_t k = 0; k < per_token; ++k) {
    const std::int64_t expert = p.experts.Row(token)[k] - p.first_expert;
    if (expert >= 0 && expert < p.gate.experts) {
      const float value = cuda::ToFloat(contributions[(token * per_token + k) * p.x.cols + column]);
      sum = __fadd_rn(sum, __fmul_rn(p.weights.Row(token)[k], value));
    }
  }
  if (p.shared.data != nullptr) {
    sum +=
        cuda::ToFloat(static_cast<const T*>(p.shared.data)[token * p.shared.row_stride + column]);
  }
  static_cast<T*>(p.y.data)[token * p.y.row_stride + column] = cuda::FromFloat<T>(sum);
}

dim3 GridOf(const StackedWeight& weight, int weight_rows, std::int64_t tiles, int projections) {
  return {static_cast<unsigned>((weight.rows + weight_rows - 1) / weight_rows),
          static_cast<unsigned>(tiles), static_cast<unsigned>(projections)};
}

template <typename Element, int kTokens, typename Y>
void LaunchProduct(const Projection& projection, std::int64_t tiles, int projections,
                   cudaStream_t stream) {
  using Product = cuda::RowProduct<Element, kTokens>;
  const auto kernel = ProjectKernel<Element, kTokens, Y>;
  DSA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      Product::kSharedBytes));
  constexpr std::int64_t kAlignment = 16;
  const auto is_aligned = [&](const void* data, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(data) % kAlignment == 0 &&
           stride * static_cast<std::int64_t>(sizeof(Element)) % kAlignment == 0;
  };
  const StackedWeight& weight = projection.weight[0];
  kernel<<<GridOf(weight, Product::kWeightRows, tiles, projections), kThreads,
           Product::kSharedBytes, stream>>>(
      projection, is_aligned(projection.x, projection.x_stride) &&
                      is_aligned(weight.data, weight.cols) &&
                      is_aligned(projection.weight[projections - 1].data, weight.cols));
}

// `T` is the activation type, Y that of the output.
template <typename T, typename Y>
void Launch(const Projection& projection, std::int64_t tiles, int tile_tokens, int projections,
            cudaStream_t stream) {
  const StackedWeight& weight = projection.weight[0];
  if (weight.type == DataType::kFp8E4m3) {
    tile_tokens == kTileTokensMin
        ? LaunchProduct<Fp8E4m3, kTileTokensMin, Y>(projection, tiles, projections, stream)
        : LaunchProduct<Fp8E4m3, 64, Y>(projection, tiles, projections, stream);
  } else if (std::is_same_v<T, __nv_bfloat16> && weight.type == DataType::kBf16) {
    tile_tokens == kTileTokensMin
        ? LaunchProduct<__nv_bfloat16, kTileTokensMin, Y>(projection, tiles, projections, stream)
        : LaunchProduct<__nv_bfloat16, 64, Y>(projection, tiles, projections, stream);
  } else {
    cuda::DispatchFloat(weight.type, [&]<typename W>(W) {
      using Product = cuda::PlainProduct<T, W>;
      PlainProjectKernel<T, W, Y>
          <<<GridOf(weight, Product::kWeightRows, tiles, projections), kThreads, 0, stream>>>(
              projection);
    });
  }
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

std::int64_t cuda::RoutedExpertsScratchBytes(const ScratchLimits& limits) {
  if (limits.experts == 0) {
    return 0;
  }
  std::int64_t bytes = ResidentExpertsScratchBytes(limits);
  for (const std::int64_t element_bytes : {2, 4}) {
    ScratchArena arena;
    TakeRegions(arena, {.tokens = std::min(limits.tokens_max, PassTokens(element_bytes)),
                        .hidden = limits.hidden,
                        .width = limits.expert_width,
                        .experts = limits.experts,
                        .per_token = limits.experts_per_token,
                        .element_bytes = element_bytes,
                        .output_bytes = LeavesParts(limits) ? 4 : element_bytes});
    bytes = std::max(bytes, arena.used());
  }
  return bytes;
}

void cuda::RoutedExperts(const RoutedExpertsParams& params, const DeviceBuffer& scratch,
                         cudaStream_t stream) {
  const RoutedExpertsExtents extents = Validate(params);
  DSA_CHECK(params.gate.experts <= cuda::kSortThreads, "RoutedExperts: E={}, limit {}",
            params.gate.experts, cuda::kSortThreads);
  if (cuda::ResidentExpertsTakes(params)) {
    cuda::ResidentExperts({.routed = params, .shared_expert = nullptr, .quantized_input = nullptr},
                          scratch, stream);
    return;
  }
  const std::int64_t element_bytes = SizeOf(params.x.type);
  const bool is_fp8 = params.gate.type == DataType::kFp8E4m3;
  const std::int64_t pass_tokens = PassTokens(element_bytes);
  for (std::int64_t first = 0; first < extents.tokens; first += pass_tokens) {
    const std::int64_t tokens = std::min(pass_tokens, extents.tokens - first);
    RoutedExpertsParams pass = params;
    pass.x = RowsOfAny(params.x, first, tokens);
    pass.experts = RowsOf(params.experts, first, tokens);
    pass.weights = RowsOf(params.weights, first, tokens);
    pass.shared = RowsOfAny(params.shared, first, tokens);
    pass.y = RowsOfAny(params.y, first, tokens);
    const std::int64_t per_token = extents.experts_per_token;
    pass.contributions = RowsOfAny(params.contributions, first * per_token, tokens * per_token);
    const bool leaves_pairs = pass.contributions.data != nullptr;
    const PassShape shape = {.tokens = tokens,
                             .hidden = extents.hidden,
                             .width = extents.width,
                             .experts = params.gate.experts,
                             .per_token = per_token,
                             .element_bytes = element_bytes,
                             .output_bytes = SizeOf(params.y.type)};
    cuda::ScratchArena arena(scratch);
    const Regions regions = TakeRegions(arena, shape);
    arena.CheckFits("RoutedExperts");

    // Sort.  Wide tiles as soon as an expert has a few rows: the weights are the bound.
    constexpr std::int64_t kFewRows = 6;  // of an expert, in the mean
    const int tile_tokens = shape.pairs() <= kFewRows * shape.experts ? kTileTokensMin : 64;
    const std::int64_t tiles = shape.Tiles(tile_tokens);
    SortPairsKernel<<<1, cuda::kSortThreads, 0, stream>>>(
        {.experts = pass.experts,
         .first_expert = static_cast<std::int32_t>(params.first_expert),
         .expert_count = static_cast<int>(shape.experts),
         .with_shared = false},
        tile_tokens, static_cast<int>(tiles), regions.sorted);
    DSA_CUDA_CHECK(cudaGetLastError());

    // Quantize.
    if (is_fp8) {
      QuantizeFp8({.x = pass.x,
                   .values = {.data = regions.inputs,
                              .rows = tokens,
                              .cols = shape.hidden,
                              .row_stride = shape.hidden},
                   .scales = {.data = regions.input_scales,
                              .rows = tokens,
                              .cols = Fp8Blocks(shape.hidden),
                              .row_stride = Fp8Blocks(shape.hidden)},
                   .scale_format = params.scale_format},
                  stream);
    }

    // Inner.
    const Projection inner = {.weight = {params.gate, params.up},
                              .tiles = regions.sorted.tiles,
                              .x = is_fp8 ? regions.inputs : pass.x.data,
                              .x_stride = is_fp8 ? shape.hidden : pass.x.row_stride,
                              .x_scales = regions.input_scales,
                              .x_scale_stride = Fp8Blocks(shape.hidden),
                              .x_rows = regions.sorted.tokens,
                              .y = {regions.gate, regions.up},
                              .y_rows = nullptr};
    cuda::DispatchFloat(params.x.type,
                        [&]<typename T>(T) { Launch<T, T>(inner, tiles, tile_tokens, 2, stream); });

    // Activate.
    const AnyMatrix gate = {.data = regions.gate,
                            .type = params.x.type,
                            .rows = shape.pairs(),
                            .cols = shape.width,
                            .row_stride = shape.width};
    AnyMatrix up = gate;
    up.data = regions.up;
    SwiGlu({.gate = gate, .up = up, .y = gate}, stream);
    if (is_fp8) {
      QuantizeFp8({.x = gate,
                   .values = {.data = regions.inner,
                              .rows = shape.pairs(),
                              .cols = shape.width,
                              .row_stride = shape.width},
                   .scales = {.data = regions.inner_scales,
                              .rows = shape.pairs(),
                              .cols = Fp8Blocks(shape.width),
                              .row_stride = Fp8Blocks(shape.width)},
                   .scale_format = params.scale_format},
                  stream);
    }

    // Outer.
    const Projection outer = {
        .weight = {params.down, params.down},
        .tiles = regions.sorted.tiles,
        .x = is_fp8 ? static_cast<const void*>(regions.inner) : regions.gate,
        .x_stride = shape.width,
        .x_scales = regions.inner_scales,
        .x_scale_stride = Fp8Blocks(shape.width),
        .x_rows = nullptr,
        .y = {leaves_pairs ? pass.contributions.data : static_cast<void*>(regions.contributions),
              nullptr},
        .y_rows = regions.sorted.pairs};
    cuda::DispatchFloat(params.x.type, [&]<typename T>(T) {
      params.y.type == DataType::kF32 ? Launch<T, float>(outer, tiles, tile_tokens, 1, stream)
                                      : Launch<T, T>(outer, tiles, tile_tokens, 1, stream);
    });

    // Combine.
    if (leaves_pairs) {
      continue;
    }
    cuda::DispatchFloat(params.y.type, [&]<typename Y>(Y) {
      const dim3 grid(static_cast<unsigned>((shape.hidden + kThreads - 1) / kThreads),
                      static_cast<unsigned>(tokens));
      CombineKernel<Y>
          <<<grid, kThreads, 0, stream>>>(pass, reinterpret_cast<const Y*>(regions.contributions));
    });
    DSA_CUDA_CHECK(cudaGetLastError());
  }
}

}  // namespace dsa
