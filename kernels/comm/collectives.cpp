#include "kernels/comm/collectives.h"

#include "kernels/ops/validate.h"

namespace dsa {

AllReduceExtents Validate(const AllReduceParams& params) {
  ShapeBinder shapes("AllReduce");
  const auto [tokens, hidden] = shapes.Match("partial", params.partial, "T", "D");
  shapes.Match("sum", params.sum, "T", "D");
  CheckActivation("AllReduce", "sum", params.sum.type);
  return {.tokens = tokens, .hidden = hidden};
}

AllGatherExtents Validate(const AllGatherParams& params) {
  ShapeBinder shapes("AllGather");
  const auto [rows, part_cols] = shapes.Match("part", params.part, "R", "V of the rank");
  const auto [same_rows, cols] = shapes.Match("whole", params.whole, "R", "V");
  CheckActivation("AllGather", "part", params.part.type);
  CheckSameType("AllGather", "whole", params.whole.type, params.part.type);
  DSA_CHECK(part_cols <= cols, "AllGather: {} of {} columns, {} rows", part_cols, cols, same_rows);
  return {.rows = rows, .cols = cols};
}

}  // namespace dsa
