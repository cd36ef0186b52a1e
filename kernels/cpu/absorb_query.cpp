//   q_latent[t, h] = round(W_UK[h]^T q_nope[t, h])
//
// A tile of rows of one head: out[i] += sum over n of q[i, n] * W_UK[h][n].
#include "kernels/ops/absorb_query.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/head_tiles.h"
#include "kernels/cpu/products.h"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa {
namespace {

// A chunk of the sum at a time, so that its part of W_UK serves all rows while it is near.  The
// terms of a value form one ascending chain, the order in which NumPy's einsum adds them: products
// of bfloat16 are exact, so a value has the bits of the numpy reference and rounds to the same
// side.
template <typename T>
void AbsorbTile(const AbsorbQueryParams& params, const cpu::HeadTile& tile, const T* weights) {
  const std::int64_t weight_stride = params.w_uk.head_stride;
  float sums[cpu::kHeadTileRows * kLatentValues] = {};
  float queries[cpu::kHeadTileRows * cpu::kWeightedSumChunk];
  for (std::int64_t n = 0; n < params.q_nope.cols; n += cpu::kWeightedSumChunk) {
    const std::int64_t terms = std::min(cpu::kWeightedSumChunk, params.q_nope.cols - n);
    cpu::LoadTile(params.q_nope, tile, n,
                  {.data = queries,
                   .rows = tile.rows(),
                   .cols = terms,
                   .row_stride = cpu::kWeightedSumChunk});
    cpu::AddWeightedSum<cpu::Chunks::kChained, T>({.rows = tile.rows(),
                                                   .terms = terms,
                                                   .width = kLatentValues,
                                                   .weights = queries,
                                                   .weight_stride = cpu::kWeightedSumChunk,
                                                   .b = weights + n * weight_stride,
                                                   .b_stride = weight_stride,
                                                   .out = sums,
                                                   .out_stride = kLatentValues},
                                                  cpu::EveryRow{});
  }
  cpu::StoreTile(
      {.data = sums, .rows = tile.rows(), .cols = kLatentValues, .row_stride = kLatentValues},
      params.q_latent, tile, 0);
}

}  // namespace

void CpuBackend::Compute(const AbsorbQueryParams& params) {
  const AbsorbQueryExtents extents = Validate(params);
  cpu::ForHeadTiles(
      pool_, extents.tokens, params.w_uk,
      [&](const cpu::HeadTile& tile, const auto* weights) { AbsorbTile(params, tile, weights); });
}

}  // namespace dsa
