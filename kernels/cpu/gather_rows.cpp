#include "kernels/ops/gather_rows.h"

#include "common/check.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/rows.h"

#include <cstring>

namespace dsa {

void CpuBackend::Compute(const GatherRowsParams& params) {
  const auto extents = Validate(params);
  const auto row_bytes = static_cast<std::size_t>(extents.hidden * SizeOf(params.x.type));
  for (std::int64_t r = 0; r < extents.rows; ++r) {
    const std::int64_t row = params.rows.data[r];
    DSA_CHECK(row >= 0 && row < params.x.rows, "GatherRows: rows[{}]={}, T={}", r, row,
              params.x.rows);
    std::memcpy(RowOf(params.y, r), RowOf(params.x, row), row_bytes);
  }
}

}  // namespace dsa
