#include "kernels/ops/absorb_query.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/weighted_sum.h"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr std::int64_t kTileRows = 16;

// Rows first .. last - 1 of one head.  A chunk of the sum at a time, so that its part of W_UK
// serves all rows while it is near.
template <typename T>
void AbsorbTile(const AbsorbQueryParams& params, const T* w_uk, std::int64_t head,
                std::int64_t first, std::int64_t last) {
  const ConstAnyTensor3& q = params.q_nope;
  const AnyTensor3& target = params.q_latent;
  float sums[kTileRows * kLatentValues] = {};
  float queries[kTileRows * cpu::kWeightedSumChunk];
  for (std::int64_t n = 0; n < q.cols; n += cpu::kWeightedSumChunk) {
    const std::int64_t terms = std::min(cpu::kWeightedSumChunk, q.cols - n);
    for (std::int64_t row = first; row < last; ++row) {
      const std::int64_t offset = row * q.row_stride + head * q.head_stride + n;
      LoadRow(Offset(q.data, q.type, offset), q.type, terms,
              queries + (row - first) * cpu::kWeightedSumChunk);
    }
    const cpu::WeightedSumShape shape = {.rows = last - first,
                                         .terms = terms,
                                         .width = kLatentValues,
                                         .weight_stride = cpu::kWeightedSumChunk,
                                         .b_stride = params.w_uk.head_stride,
                                         .out_stride = kLatentValues};
    const T* const weights = w_uk + head * params.w_uk.row_stride + n * params.w_uk.head_stride;
    cpu::AddWeightedSum(shape, queries, weights, cpu::EveryRow{}, sums);
  }
  for (std::int64_t row = first; row < last; ++row) {
    const std::int64_t offset = row * target.row_stride + head * target.head_stride;
    StoreRow(sums + (row - first) * kLatentValues, kLatentValues,
             Offset(target.data, target.type, offset), target.type);
  }
}

}  // namespace

void CpuBackend::AbsorbQuery(const AbsorbQueryParams& params) {
  const AbsorbQueryExtents extents = Validate(params);
  const std::int64_t tiles = (extents.tokens + kTileRows - 1) / kTileRows;
  pool_.ParallelFor(tiles * extents.heads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t item = first; item < last; ++item) {
      const std::int64_t row = item % tiles * kTileRows;
      const std::int64_t row_end = std::min(row + kTileRows, extents.tokens);
      if (params.w_uk.type == DataType::kF32) {
        AbsorbTile(params, static_cast<const float*>(params.w_uk.data), item / tiles, row, row_end);
      } else {
        AbsorbTile(params, static_cast<const Bf16*>(params.w_uk.data), item / tiles, row, row_end);
      }
    }
  });
}

}  // namespace dsa
