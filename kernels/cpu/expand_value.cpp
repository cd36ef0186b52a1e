//   o[t, h] = round(W_UV[h] o_latent[t, h])
//
// A tile of rows of one head: out[i, v] = o_latent[i] . W_UV[h][v].
#include "kernels/ops/expand_value.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/head_tiles.h"
#include "kernels/cpu/products.h"
#include "kernels/cpu/simd.h"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa {
namespace {

// Rows of a head's weights from one value on.
template <typename T>
struct WeightRows {
  const T* data;
  std::int64_t stride;
};

// kTileValues values at a time, of weights that weights_at(v) gives from value v on.  In the
// summation order of NumPy's einsum: products of bfloat16 are exact, so a value has the bits of the
// numpy reference and rounds to the same side.
template <typename T, std::int64_t kTileValues, typename WeightsAt>
void ExpandTile(const ExpandValueParams& params, const cpu::HeadTile& tile,
                const WeightsAt& weights_at) {
  float inputs[cpu::kHeadTileRows * kLatentValues];
  cpu::LoadTile(
      params.o_latent, tile, 0,
      {.data = inputs, .rows = tile.rows(), .cols = kLatentValues, .row_stride = kLatentValues});
  float values[cpu::kHeadTileRows * kTileValues];
  for (std::int64_t v = 0; v < params.o.cols; v += kTileValues) {
    const std::int64_t count = std::min(kTileValues, params.o.cols - v);
    const WeightRows<T> weights = weights_at(v);
    cpu::EinsumMatrix<T>({.rows = tile.rows(),
                          .columns = count,
                          .n = kLatentValues,
                          .a = inputs,
                          .a_stride = kLatentValues,
                          .b = weights.data,
                          .b_stride = weights.stride,
                          .out = values,
                          .out_stride = kTileValues});
    cpu::StoreTile({.data = values, .rows = tile.rows(), .cols = count, .row_stride = kTileValues},
                   params.o, tile, v);
  }
}

// Of fp8 weights, de-quantized some rows at a time to the float that a code times its scale rounds
// to: where scales are powers of two, the bits of w_uv de-quantized to bfloat16.
void ExpandScaledTile(const ExpandValueParams& params, const cpu::HeadTile& tile) {
  constexpr std::int64_t kRows = 16;
  static_assert(kValuesPerScale % kRows == 0);
  const auto* const codes =
      static_cast<const Fp8E4m3*>(params.w_uv.data) + tile.head * params.w_uv.row_stride;
  float weights[kRows * kLatentValues];
  ExpandTile<float, kRows>(params, tile, [&](std::int64_t v) -> WeightRows<float> {
    const float* const scales =
        params.w_uv_scales.Row((tile.head * params.o.cols + v) / kValuesPerScale);
    for (std::int64_t row = 0; row < kRows; ++row) {
      const Fp8E4m3* const from = codes + (v + row) * params.w_uv.head_stride;
      float* const to = weights + row * kLatentValues;
      for (std::int64_t col = 0; col < kLatentValues; col += 2 * kLanes) {
        const F32x8Pair pair = Load16(from + col);
        const F32x8 scale = F32x8::All(scales[col / kValuesPerScale]);
        Store8(to + col, pair.low * scale);
        Store8(to + col + kLanes, pair.high * scale);
      }
    }
    return {.data = weights, .stride = kLatentValues};
  });
}

}  // namespace

void CpuBackend::Compute(const ExpandValueParams& params) {
  const ExpandValueExtents extents = Validate(params);
  if (params.w_uv.type == DataType::kFp8E4m3) {
    cpu::ForTilesOfHeads(pool_, extents.tokens, extents.heads,
                         [&](const cpu::HeadTile& tile) { ExpandScaledTile(params, tile); });
    return;
  }
  cpu::ForHeadTiles(pool_, extents.tokens, params.w_uv,
                    [&]<typename T>(const cpu::HeadTile& tile, const T* weights) {
                      constexpr std::int64_t kTileValues = 64;
                      const std::int64_t stride = params.w_uv.head_stride;
                      ExpandTile<T, kTileValues>(params, tile, [&](std::int64_t v) {
                        return WeightRows<T>{.data = weights + v * stride, .stride = stride};
                      });
                    });
}

}  // namespace dsa
