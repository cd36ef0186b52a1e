// What the kernels of expanded values share: where results go, with their fp8 copy where there is
// one.
#pragma once

#include "kernels/cuda/quantize_fp8.cuh"
#include "kernels/cuda/weight_map.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/quantize_fp8.h"

#include <cstdint>

namespace dsa::cuda {

inline constexpr int kExpandedValues = 128;                  // of a head, by a block
inline constexpr int kExpandedStride = kExpandedValues + 8;  // of rounded results, by token
inline constexpr int kExpandedThreads = 256;                 // that store
inline constexpr int kExpandedTokens = kExpandedThreads / kQuantizeLanes;  // at a time
static_assert(kExpandedValues == kQuantizeLanes * kQuantizeWidth);

struct ExpandedOutput {
  __nv_bfloat16* o;
  std::int64_t row_stride;
  std::int64_t head_stride;
  std::int64_t rows;
  // [T, H * V], the heads' values one behind the other; values.data null: none is wanted.
  QuantizedView fp8;
  std::int64_t head_values;  // V
};

inline ExpandedOutput ExpandedOutputOf(const ExpandValueParams& params, const QuantizedView& fp8) {
  return {.o = static_cast<__nv_bfloat16*>(params.o.data),
          .row_stride = params.o.row_stride,
          .head_stride = params.o.head_stride,
          .rows = params.o.rows,
          .fp8 = fp8,
          .head_values = params.o.cols};
}
// Blocks of kExpandedValues values for `tile_tokens` tokens: heads, tiles of tokens, tiles of a
// head's values.
inline dim3 ExpandedGrid(const ExpandValueExtents& extents, int tile_tokens) {
  return {static_cast<unsigned>(extents.heads),
          static_cast<unsigned>((extents.tokens + tile_tokens - 1) / tile_tokens),
          static_cast<unsigned>(extents.value / kExpandedValues)};
}
// Latents [heads, tokens, 512], in boxes of 64 columns of `tile_tokens` tokens.
inline constexpr int kLatentBoxColumns = 64;
inline CUtensorMap LatentMap(const ExpandValueParams& params, int tile_tokens) {
  const ConstAnyTensor3& latents = params.o_latent;
  const MapAxis axes[] = {
      {.extent = kLatentValues, .stride = 1, .box = kLatentBoxColumns},
      {.extent = latents.rows, .stride = latents.row_stride, .box = tile_tokens},
      {.extent = latents.heads, .stride = latents.head_stride, .box = 1}};
  return Bf16Map(latents.data, axes);
}

// Word i of a lane's four of `sum` from group j of eight columns on, for StoreMatrices: two groups,
// of two rows eight apart each.
template <int kSums>
__device__ void RoundToMatrices(const float (&sum)[kSums], int j, unsigned (&words)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = 4 * (j + i / 2) + i % 2 * 2;
    words[i] = Bf16PairOf(sum[at], sum[at + 1]);
  }
}

// By kExpandedThreads threads, half a warp per token, eight values a lane.  `results`: kTokens rows
// of kExpandedStride in shared memory.
template <int kTokens>
__device__ void StoreExpanded(const ExpandedOutput& output, const __nv_bfloat16* results,
                              int first_value, int first_token, int head) {
  const int value = static_cast<int>(threadIdx.x) % kQuantizeLanes * kQuantizeWidth;
  const std::int64_t column = head * output.head_values + first_value + value;
#pragma unroll
  for (int first = 0; first < kTokens; first += kExpandedTokens) {
    const int token = first + static_cast<int>(threadIdx.x) / kQuantizeLanes;
    const std::int64_t row = first_token + token;
    if (first_token + first >= output.rows) {
      return;  // of the block
    }
    const auto rounded = LoadPack<kQuantizeWidth>(results + token * kExpandedStride + value);
    if (row < output.rows) {
      StorePack(
          output.o + row * output.row_stride + head * output.head_stride + first_value + value,
          rounded);
    }
    if (output.fp8.values.data == nullptr) {
      continue;
    }
    float values[kQuantizeWidth];
#pragma unroll
    for (int i = 0; i < kQuantizeWidth; ++i) {
      values[i] = __bfloat162float(rounded.values[i]);
    }
    float scale = 0.0F;
    const auto codes = QuantizeBlock(values, output.fp8.format, scale);
    if (row < output.rows) {
      StorePack(output.fp8.values.Row(row) + column, codes);
      if (value == 0) {
        output.fp8.scales.Row(row)[column / kValuesPerScale] = scale;
      }
    }
  }
}

}  // namespace dsa::cuda
