#include "kernels/fused/select_keys.h"

#include "common/check.h"
#include "common/view_parts.h"
#include "kernels/backend.h"
#include "kernels/ops/indexer_logits.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/select_top_k.h"

#include <algorithm>

namespace dsa {

void Backend::SelectKeys(const SelectKeysParams& params) {
  PrepareIndexerQuery({.q = params.q,
                       .positions = params.rows.positions,
                       .table = params.table,
                       .layout = params.layout,
                       .format = params.cache.format,
                       .head_weights = params.head_weights,
                       .queries = params.queries,
                       .weights = params.weights});
  const std::int64_t tokens = params.rows.positions.size;
  const std::int64_t tile = params.scores.rows / params.rows.group * params.rows.group;
  DSA_CHECK(tile > 0, "SelectKeys: scores of {} rows, groups of {}", params.scores.rows,
            params.rows.group);
  for (std::int64_t first = 0; first < tokens; first += tile) {
    const std::int64_t count = std::min(tile, tokens - first);
    const PagedRows rows = RowsOf(params.rows, first, count);
    const Matrix<float> scores = RowsOf(params.scores, 0, count);
    IndexerLogits({.queries = RowsOfAny(params.queries, first, count),
                   .weights = AsConst(RowsOf(params.weights, first, count)),
                   .cache = params.cache,
                   .rows = rows,
                   .scores = scores});
    SelectTopK({.scores = AsConst(scores),
                .rows = rows,
                .k = params.k,
                .slots = RowsOf(params.slots, first, count),
                .mask = RowsOf(params.mask, first, count),
                .positions = {},
                .counts = RowsOf(params.counts, first, count),
                .faults = RowsOf(params.faults, first, count)});
  }
  if (params.absorbed) {
    Rope(RopeOf(*params.absorbed, params.rows.positions));
    AbsorbQuery(AbsorbOf(*params.absorbed));
  }
}

}  // namespace dsa
