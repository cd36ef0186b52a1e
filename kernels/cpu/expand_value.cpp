//   o[t, h] = round(W_UV[h] o_latent[t, h])
//
// A tile of rows of one head: out[i, v] = o_latent[i] . W_UV[h][v].
#include "kernels/ops/expand_value.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/head_tiles.h"
#include "kernels/cpu/products.h"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr std::int64_t kTileValues = 64;

// In the summation order of NumPy's einsum: products of bfloat16 are exact, so a value has the bits
// of the numpy reference and rounds to the same side.
template <typename T>
void ExpandTile(const ExpandValueParams& params, const cpu::HeadTile& tile, const T* weights) {
  const std::int64_t weight_stride = params.w_uv.head_stride;
  float inputs[cpu::kHeadTileRows * kLatentValues];
  cpu::LoadTile(
      params.o_latent, tile, 0,
      {.data = inputs, .rows = tile.rows(), .cols = kLatentValues, .row_stride = kLatentValues});
  float values[cpu::kHeadTileRows * kTileValues];
  for (std::int64_t v = 0; v < params.o.cols; v += kTileValues) {
    const std::int64_t count = std::min(kTileValues, params.o.cols - v);
    cpu::EinsumMatrix<T>({.rows = tile.rows(),
                          .columns = count,
                          .n = kLatentValues,
                          .a = inputs,
                          .a_stride = kLatentValues,
                          .b = weights + v * weight_stride,
                          .b_stride = weight_stride,
                          .out = values,
                          .out_stride = kTileValues});
    cpu::StoreTile({.data = values, .rows = tile.rows(), .cols = count, .row_stride = kTileValues},
                   params.o, tile, v);
  }
}

}  // namespace

void CpuBackend::Compute(const ExpandValueParams& params) {
  const ExpandValueExtents extents = Validate(params);
  cpu::ForHeadTiles(
      pool_, extents.tokens, params.w_uv,
      [&](const cpu::HeadTile& tile, const auto* weights) { ExpandTile(params, tile, weights); });
}

}  // namespace dsa
