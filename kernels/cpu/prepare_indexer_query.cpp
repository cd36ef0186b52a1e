#include "kernels/ops/prepare_indexer_query.h"

#include "kernels/cpu/cache_access.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/rotate.h"
#include "kernels/cpu/rows.h"

#include <cmath>

namespace dsa {
namespace {

void PrepareRow(const PrepareIndexerQueryParams& params, std::int64_t row) {
  const std::int32_t position = params.positions.data[row];
  // In double and rounded once, so that every head count gets the nearest float.
  const auto norm = static_cast<float>(1.0 / std::sqrt(static_cast<double>(params.q.heads)) /
                                       std::sqrt(static_cast<double>(kIndexerValues)));
  const auto* head_weights =
      static_cast<const float*>(params.head_weights.data) + row * params.head_weights.row_stride;
  for (std::int64_t head = 0; head < params.q.heads; ++head) {
    float values[kIndexerValues];
    const std::int64_t source = row * params.q.row_stride + head * params.q.head_stride;
    LoadRow(Offset(params.q.data, params.q.type, source), params.q.type, kIndexerValues, values);
    cpu::RotateHead(values, params.table, position, params.layout);
    RoundRow(values, kIndexerRopeValues, params.q.type);

    const std::int64_t target = row * params.queries.row_stride + head * params.queries.head_stride;
    float scale = 1.0F;
    if (params.format == KvFormat::kFp8) {
      cpu::HadamardTransform(values);
      RoundRow(values, kIndexerValues, params.q.type);
      scale = cpu::QuantizeBlock(values, kIndexerValues,
                                 static_cast<std::uint8_t*>(params.queries.data) + target);
    } else {
      StoreRow(values, kIndexerValues, Offset(params.queries.data, params.queries.type, target),
               params.queries.type);
    }
    params.weights.Row(row)[head] = head_weights[head] * norm * scale;
  }
}

}  // namespace

void CpuBackend::Compute(const PrepareIndexerQueryParams& params) {
  const PrepareIndexerQueryExtents extents = Validate(params);
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t row = first; row < last; ++row) {
      PrepareRow(params, row);
    }
  });
}

}  // namespace dsa
