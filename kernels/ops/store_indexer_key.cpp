#include "kernels/ops/store_indexer_key.h"

#include "common/check.h"
#include "common/shape.h"

namespace dsa {

StoreIndexerKeyExtents Validate(const StoreIndexerKeyParams& params) {
  ShapeBinder shapes("StoreIndexerKey");
  const auto [tokens, cols] = shapes.Match("k", params.k, "T", "D");
  shapes.Match("norm_weight", params.norm_weight, "D");
  shapes.Match("norm_bias", params.norm_bias, "D");
  shapes.Match("positions", params.positions, "T");
  shapes.Match("slots", params.slots, "T");
  shapes.Match("cos", params.table.cos, "P", "R/2");
  shapes.Match("sin", params.table.sin, "P", "R/2");
  DSA_CHECK(cols == kIndexerValues, "StoreIndexerKey: k has {} columns, expected {}", cols,
            kIndexerValues);
  DSA_CHECK(params.table.cos.cols == kIndexerRopeValues / 2,
            "StoreIndexerKey: the table has R/2={}, expected {}", params.table.cos.cols,
            kIndexerRopeValues / 2);
  DSA_CHECK(params.k.type != DataType::kFp8E4m3, "StoreIndexerKey: k is fp8");
  DSA_CHECK(params.eps > 0.0F, "StoreIndexerKey: eps={}", params.eps);
  return {.tokens = tokens};
}

}  // namespace dsa
