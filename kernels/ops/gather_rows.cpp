#include "kernels/ops/gather_rows.h"

#include "kernels/ops/validate.h"

namespace dsa {

GatherRowsExtents Validate(const GatherRowsParams& params) {
  ShapeBinder shapes("GatherRows");
  shapes.Match("x", params.x, "T", "D");
  const auto [rows] = shapes.Match("rows", params.rows, "R");
  const auto [same_rows, hidden] = shapes.Match("y", params.y, "R", "D");
  CheckSameType("GatherRows", "y", params.y.type, params.x.type);
  DSA_CHECK(same_rows == rows, "GatherRows: y has R={}, expected {}", same_rows, rows);
  return {.rows = rows, .hidden = hidden};
}

}  // namespace dsa
