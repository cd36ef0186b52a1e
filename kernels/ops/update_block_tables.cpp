#include "kernels/ops/update_block_tables.h"

#include "kernels/ops/validate.h"

namespace dsa {

UpdateBlockTablesExtents Validate(const UpdateBlockTablesParams& params) {
  ShapeBinder shapes("UpdateBlockTables");
  const auto [updates] = shapes.Match("updates", params.updates, "U");
  shapes.Match("blocks", params.blocks, "K");
  shapes.Match("tables", params.tables, "S", "B");
  return {.updates = updates};
}

}  // namespace dsa
