#include "kernels/ops/rope.h"

#include "common/check.h"
#include "common/shape.h"

namespace dsa {

RopeExtents Validate(const RopeParams& params) {
  ShapeBinder shapes("Rope");
  const auto [tokens, heads, width] = shapes.Match("x", params.x, "T", "H", "R");
  shapes.Match("positions", params.positions, "T");
  shapes.Match("cos", params.table.cos, "P", "R/2");
  shapes.Match("sin", params.table.sin, "P", "R/2");
  DSA_CHECK(width % 2 == 0, "Rope: R={} is odd", width);
  DSA_CHECK(params.table.cos.cols == width / 2, "Rope: the table has R/2={}, expected {}",
            params.table.cos.cols, width / 2);
  DSA_CHECK(params.x.type != DataType::kFp8E4m3, "Rope: x is fp8");
  return {.tokens = tokens, .heads = heads, .width = width};
}

}  // namespace dsa
