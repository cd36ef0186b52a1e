#include "kernels/ops/prepare_indexer_query.h"

#include "common/check.h"
#include "common/shape.h"

namespace dsa {

PrepareIndexerQueryExtents Validate(const PrepareIndexerQueryParams& params) {
  ShapeBinder shapes("PrepareIndexerQuery");
  const auto [tokens, heads, cols] = shapes.Match("q", params.q, "T", "H", "D");
  shapes.Match("positions", params.positions, "T");
  shapes.Match("cos", params.table.cos, "P", "R/2");
  shapes.Match("sin", params.table.sin, "P", "R/2");
  shapes.Match("head_weights", params.head_weights, "T", "H");
  shapes.Match("queries", params.queries, "T", "H", "D");
  shapes.Match("weights", params.weights, "T", "H");
  DSA_CHECK(cols == kIndexerValues, "PrepareIndexerQuery: q has {} columns, expected {}", cols,
            kIndexerValues);
  DSA_CHECK(params.table.cos.cols == kIndexerRopeValues / 2,
            "PrepareIndexerQuery: the table has R/2={}, expected {}", params.table.cos.cols,
            kIndexerRopeValues / 2);
  DSA_CHECK(params.q.type != DataType::kFp8E4m3, "PrepareIndexerQuery: q is fp8");
  DSA_CHECK(params.head_weights.type == DataType::kF32,
            "PrepareIndexerQuery: head_weights are not f32 but type {}",
            static_cast<int>(params.head_weights.type));
  const DataType expected = params.format == KvFormat::kFp8 ? DataType::kFp8E4m3 : params.q.type;
  DSA_CHECK(params.queries.type == expected,
            "PrepareIndexerQuery: queries have type {}, expected {}",
            static_cast<int>(params.queries.type), static_cast<int>(expected));
  return {.tokens = tokens, .heads = heads};
}

}  // namespace dsa
