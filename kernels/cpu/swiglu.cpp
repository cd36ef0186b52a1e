#include "kernels/cpu/swiglu.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/rows.h"
#include "kernels/ops/swiglu.h"

#include <algorithm>
#include <cmath>

namespace dsa {

void RunSwiGluRow(const SwiGluRow& row) {
  constexpr std::int64_t kChunk = 256;
  float gate[kChunk];
  float up[kChunk];
  for (std::int64_t first = 0; first < row.count; first += kChunk) {
    const std::int64_t count = std::min(kChunk, row.count - first);
    LoadRow(Offset(row.gate, row.type, first), row.type, count, gate);
    LoadRow(Offset(row.up, row.type, first), row.type, count, up);
    for (std::int64_t i = 0; i < count; ++i) {
      gate[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
    }
    StoreRow(gate, count, Offset(row.target, row.type, first), row.type);
  }
}

void CpuBackend::Compute(const SwiGluParams& params) {
  const auto extents = Validate(params);
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      RunSwiGluRow({.gate = RowOf(params.gate, t),
                    .up = RowOf(params.up, t),
                    .target = RowOf(params.y, t),
                    .type = params.gate.type,
                    .count = extents.width});
    }
  });
}

}  // namespace dsa
