#include "kernels/ops/update_block_tables.h"

#include "common/check.h"
#include "kernels/cpu/cpu_backend.h"

#include <algorithm>

namespace dsa {

void CpuBackend::Compute(const UpdateBlockTablesParams& params) {
  const auto extents = Validate(params);
  for (std::int64_t u = 0; u < extents.updates; ++u) {
    const TableUpdate& update = params.updates.data[u];
    if (update.count == 0) {
      continue;
    }
    DSA_CHECK(update.row >= 0 && update.row < params.tables.rows && update.first >= 0 &&
                  update.count > 0 && update.first + update.count <= params.tables.cols,
              "UpdateBlockTables: updates[{}] writes [{}, {} + {}] of [{}, {}]", u, update.row,
              update.first, update.count, params.tables.rows, params.tables.cols);
    DSA_CHECK(update.source >= 0 && update.source + update.count <= params.blocks.size,
              "UpdateBlockTables: updates[{}] reads {} + {} of {} ids", u, update.source,
              update.count, params.blocks.size);
    std::copy_n(params.blocks.data + update.source, update.count,
                params.tables.Row(update.row) + update.first);
  }
}

}  // namespace dsa
