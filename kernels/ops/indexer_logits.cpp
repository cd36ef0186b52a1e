#include "kernels/ops/indexer_logits.h"

#include "common/check.h"
#include "common/shape.h"
#include "kernels/ops/validate.h"

namespace dsa {

IndexerLogitsExtents Validate(const IndexerLogitsParams& params) {
  ShapeBinder shapes("IndexerLogits");
  const auto [tokens, heads, cols] = shapes.Match("queries", params.queries, "T", "H", "D");
  shapes.Match("weights", params.weights, "T", "H");
  CheckRows("IndexerLogits", shapes, params.rows);
  shapes.Match("scores", params.scores, "T", "C");
  DSA_CHECK(cols == kIndexerValues, "IndexerLogits: queries have {} columns, expected {}", cols,
            kIndexerValues);
  DSA_CHECK((params.queries.type == DataType::kFp8E4m3) == (params.cache.format == KvFormat::kFp8),
            "IndexerLogits: queries of type {} meet a cache of format {}",
            static_cast<int>(params.queries.type), static_cast<int>(params.cache.format));
  return {.tokens = tokens, .heads = heads};
}

}  // namespace dsa
