#include "kernels/ops/store_indexer_key.h"

#include "kernels/cpu/cache_access.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/pairwise_sum.h"
#include "kernels/cpu/rotate.h"
#include "kernels/cpu/rows.h"

#include <cmath>

namespace dsa {
namespace {

// LayerNorm with bias; the variance is the biased one, of the centred values.
void Normalize(const StoreIndexerKeyParams& params, float* values) {
  const float mean =
      cpu::PairwiseSum<false>(values, kIndexerValues) / static_cast<float>(kIndexerValues);
  for (int i = 0; i < kIndexerValues; ++i) {
    values[i] -= mean;
  }
  const float sum_of_squares = cpu::PairwiseSum<true>(values, kIndexerValues);
  const float deviation =
      std::sqrt(sum_of_squares / static_cast<float>(kIndexerValues) + params.eps);
  for (int i = 0; i < kIndexerValues; ++i) {
    values[i] = values[i] / deviation * params.norm_weight.data[i] + params.norm_bias.data[i];
  }
}

void StoreToken(const StoreIndexerKeyParams& params, std::int64_t row) {
  const std::int32_t position = params.positions.data[row];
  float values[kIndexerValues];
  LoadRow(RowOf(params.k, row), params.k.type, kIndexerValues, values);

  Normalize(params, values);
  RoundRow(values, kIndexerValues, params.k.type);
  cpu::RotateHead(values, params.table, position, params.layout);
  RoundRow(values, kIndexerRopeValues, params.k.type);
  if (params.cache.format == KvFormat::kFp8) {
    cpu::HadamardTransform(values);
    RoundRow(values, kIndexerValues, params.k.type);
  }
  cpu::WriteIndexerKey(params.cache, params.slots.data[row], values);
}

}  // namespace

void CpuBackend::Compute(const StoreIndexerKeyParams& params) {
  const StoreIndexerKeyExtents extents = Validate(params);
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t row = first; row < last; ++row) {
      StoreToken(params, row);
    }
  });
}

}  // namespace dsa
