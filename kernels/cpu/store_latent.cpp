#include "kernels/ops/store_latent.h"

#include "kernels/cpu/cache_access.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/pairwise_sum.h"
#include "kernels/cpu/rotate.h"
#include "kernels/cpu/rows.h"

#include <cmath>

namespace dsa {
namespace {

void StoreToken(const StoreLatentParams& params, std::int64_t row) {
  const std::int32_t position = params.positions.data[row];
  float values[cpu::kLatentRecordValues];
  LoadRow(RowOf(params.kv, row), params.kv.type, cpu::kLatentRecordValues, values);

  const float sum_of_squares = cpu::PairwiseSum<true>(values, kLatentValues);
  const float deviation =
      std::sqrt(sum_of_squares / static_cast<float>(kLatentValues) + params.eps);
  for (int i = 0; i < kLatentValues; ++i) {
    values[i] = params.norm_weight.data[i] * (values[i] / deviation);
  }
  cpu::RotateHead(values + kLatentValues, params.table, position, params.layout);
  RoundRow(values, cpu::kLatentRecordValues, params.kv.type);
  cpu::WriteLatent(params.cache, params.slots.data[row], values);
}

}  // namespace

void CpuBackend::Compute(const StoreLatentParams& params) {
  const StoreLatentExtents extents = Validate(params);
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t row = first; row < last; ++row) {
      StoreToken(params, row);
    }
  });
}

}  // namespace dsa
