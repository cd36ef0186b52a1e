// The lightning indexer of one layer (DeepSeek-V3.2-Exp paper, section 2.1): keys of every row on
// every path, because later rows will select among them; queries and scores only for rows that see
// more keys than they may attend to.
#include "kernels/ops/indexer_logits.h"
#include "kernels/ops/key_selection.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/select_top_k.h"
#include "kernels/ops/store_indexer_key.h"
#include "model/transformer.h"

#include <algorithm>

namespace dsa {

void Transformer::WriteIndexerKeys(int layer, const Step& step, ProjectionInput& normed) {
  const IndexerWeights& weights = *parts_.weights.layers[static_cast<std::size_t>(layer)].indexer;
  const AnyMatrix key = Activation(Buffer::kIndexKey, step, kIndexHeadWidth);
  Project(normed, weights.wk, key);
  backend_.StoreIndexerKey({.k = key,
                            .norm_weight = weights.k_norm_weight,
                            .norm_bias = weights.k_norm_bias,
                            .eps = kIndexNormEps,
                            .positions = step.device.positions,
                            .table = parts_.rope_table,
                            .layout = parts_.config.index_rope_layout,
                            .slots = step.device.slots,
                            .cache = parts_.arena.Indexer(layer)});
}

namespace {

// The buffer that PrepareIndexerQuery fills: fp8 for an fp8 cache, else activations.
AnyTensor3 PreparedQueries(const Activations& activations, KvFormat format, std::int64_t rows,
                           std::int64_t heads) {
  const std::int64_t cols = heads * kIndexHeadWidth;
  AnyMatrix queries = activations.AsActivation(Buffer::kPreparedQuery, rows, cols);
  if (format == KvFormat::kFp8) {
    queries.type = DataType::kFp8E4m3;
  }
  return HeadsOf(queries, heads);
}

}  // namespace

void Transformer::PrepareQueries(int layer, const Step& step, ProjectionInput& query_latent,
                                 RowRange rows) {
  const ModelConfig& config = parts_.config;
  const IndexerWeights& weights = *parts_.weights.layers[static_cast<std::size_t>(layer)].indexer;
  const Activations& activations = parts_.activations;
  const std::int64_t heads = config.index_heads;
  const AnyMatrix query =
      activations.AsActivation(Buffer::kIndexQuery, rows.count, heads * kIndexHeadWidth);
  const auto head_weights =
      activations.AsMatrix<float>(Buffer::kIndexHeadWeight, rows.count, heads);
  const AnyMatrix normed = Activation(Buffer::kNormed, step, config.hidden);
  ProjectRows(query_latent, rows, weights.wq_b, query);
  backend_.Linear({.x = RowsOfAny(normed, rows.first, rows.count),
                   .weight = weights.weights_proj,
                   .y = AsAny(head_weights)});
  const KvFormat format = parts_.arena.extents().format;
  backend_.PrepareIndexerQuery(
      {.q = HeadsOf(query, heads),
       .positions = RowsOf(step.device.positions, rows.first, rows.count),
       .table = parts_.rope_table,
       .layout = config.index_rope_layout,
       .format = format,
       .head_weights = AsAny(head_weights),
       .queries = PreparedQueries(activations, format, rows.count, heads),
       .weights = activations.AsMatrix<float>(Buffer::kPreparedWeight, rows.count, heads)});
}

KeySelection Transformer::SelectKeys(int layer, const Step& step, ProjectionInput& query_latent,
                                     RowRange rows, bool as_mask) {
  PrepareQueries(layer, step, query_latent, rows);
  const Activations& activations = parts_.activations;
  const std::int64_t heads = parts_.config.index_heads;
  const AnyTensor3 queries =
      PreparedQueries(activations, parts_.arena.extents().format, rows.count, heads);
  const auto weights =
      activations.AsMatrix<const float>(Buffer::kPreparedWeight, rows.count, heads);
  const std::int64_t k = parts_.config.index_topk;
  Matrix<std::int32_t> slots{};
  Matrix<std::uint64_t> mask{};
  if (as_mask) {
    mask = activations.AsMatrix<std::uint64_t>(Buffer::kSelectionMask, rows.count,
                                               activations.mask_words());
  } else {
    slots = activations.AsMatrix<std::int32_t>(Buffer::kSelectedSlots, rows.count, k);
  }
  const auto counts = activations.AsVector<std::int32_t>(Buffer::kSelectedCounts, rows.count);
  // A few rows at a time: the scores of all of them would take rows * context * 4 bytes.
  for (std::int64_t first = 0; first < rows.count; first += activations.score_rows()) {
    const std::int64_t count = std::min(activations.score_rows(), rows.count - first);
    const RowRange tile{.first = rows.first + first, .count = count};
    const auto scores = activations.AsMatrix<float>(Buffer::kScores, count, step.shape.visible_max);
    backend_.IndexerLogits({.queries = RowsOfAny(queries, first, count),
                            .weights = RowsOf(weights, first, count),
                            .cache = parts_.arena.Indexer(layer),
                            .rows = Paged(step, tile),
                            .scores = scores});
    backend_.SelectTopK({.scores = AsConst(scores),
                         .rows = Paged(step, tile),
                         .k = k,
                         .slots = RowsOf(slots, first, count),
                         .mask = RowsOf(mask, first, count),
                         .positions = {},
                         .counts = RowsOf(counts, first, count),
                         .faults = RowsOf(step.device.row_faults, tile.first, count)});
  }
  return {
      .slots = AsConst(slots), .counts = AsConst(counts), .mask = AsConst(mask), .positions = {}};
}

}  // namespace dsa
