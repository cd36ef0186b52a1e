// The lightning indexer of one layer (DeepSeek-V3.2-Exp paper, section 2.1): keys of every row on
// every path, because later rows will select among them; queries and scores only where rows see
// more keys than they may attend to.
#include "kernels/fused/select_keys.h"
#include "kernels/ops/key_selection.h"
#include "model/transformer.h"

#include <algorithm>

namespace dsa {
namespace {

// The buffer that holds prepared queries: fp8 for an fp8 cache, else activations.
AnyTensor3 PreparedQueries(const Activations& activations, KvFormat format, std::int64_t rows,
                           std::int64_t heads) {
  AnyMatrix queries =
      activations.AsActivation(Buffer::kPreparedQuery, rows, heads * kIndexHeadWidth);
  if (format == KvFormat::kFp8) {
    queries.type = DataType::kFp8E4m3;
  }
  return HeadsOf(queries, heads);
}

}  // namespace

bool Transformer::Step::Any(bool (*has)(AttentionPath)) const {
  for (int path = 0; path < kAttentionPaths; ++path) {
    if (shape.rows.at(static_cast<std::size_t>(path)) > 0 &&
        has(static_cast<AttentionPath>(path))) {
      return true;
    }
  }
  return false;
}

Transformer::IndexerRows Transformer::RowsOfIndexer(const LayerView& layer,
                                                    const Step& step) const {
  IndexerRows rows;
  if (!layer.has_indexer()) {
    return rows;
  }
  const IndexerWeights& weights = *layer.weights.indexer;
  rows.key = {weights.wk, Values(Buffer::kIndexKey, step, kIndexHeadWidth)};
  if (step.selects()) {
    rows.query = {weights.wq_b, IndexQuery(step)};
    rows.head_weights = {{.weight = weights.weights_proj, .scales = {}}, IndexHeadWeights(step)};
  }
  return rows;
}

AnyMatrix Transformer::IndexQuery(const Step& step) const {
  return Values(Buffer::kIndexQuery, step, parts_.config.index_heads * kIndexHeadWidth);
}

AnyMatrix Transformer::IndexHeadWeights(const Step& step) const {
  return AsAny(parts_.activations.AsMatrix<float>(Buffer::kIndexHeadWeight, step.tokens,
                                                  parts_.config.index_heads));
}

// A selection stands at the rows of the batch until a later layer selects anew, so that a layer
// without an indexer of its own attends to what the last one before it has selected.
KeySelection Transformer::SelectKeys(const LayerView& layer, const Step& step, RowRange rows,
                                     bool as_mask, const std::optional<QueriesToAbsorb>& absorbed) {
  const Activations& activations = parts_.activations;
  const std::int64_t k = parts_.config.index_topk;
  const auto counts =
      RowsOf(activations.AsVector<std::int32_t>(Buffer::kSelectedCounts, step.tokens), rows.first,
             rows.count);
  Matrix<std::int32_t> slots{};
  Matrix<std::uint64_t> mask{};
  if (as_mask) {
    mask = RowsOf(activations.AsMatrix<std::uint64_t>(Buffer::kSelectionMask, step.tokens,
                                                      activations.mask_words()),
                  rows.first, rows.count);
  } else {
    slots = RowsOf(activations.AsMatrix<std::int32_t>(Buffer::kSelectedSlots, step.tokens, k),
                   rows.first, rows.count);
  }
  const KeySelection selection = {
      .slots = AsConst(slots), .counts = AsConst(counts), .mask = AsConst(mask), .positions = {}};
  if (!layer.has_indexer()) {
    return selection;
  }
  const std::int64_t heads = parts_.config.index_heads;
  const std::int64_t score_rows =
      std::min(activations.ScoreRows(step.shape.visible_max), rows.count);
  backend_.SelectKeys(
      {.q = HeadsOf(RowsOfAny(IndexQuery(step), rows.first, rows.count), heads),
       .head_weights = RowsOfAny(IndexHeadWeights(step), rows.first, rows.count),
       .table = parts_.rope_table,
       .layout = parts_.config.index_rope_layout,
       .cache = layer.indexer,
       .rows = Paged(step, rows),
       .k = k,
       .slots = slots,
       .mask = mask,
       .counts = counts,
       .faults = RowsOf(step.device.row_faults, rows.first, rows.count),
       .queries = PreparedQueries(activations, layer.indexer.format, rows.count, heads),
       .weights = activations.AsMatrix<float>(Buffer::kPreparedWeight, rows.count, heads),
       .scores = activations.AsMatrix<float>(Buffer::kScores, score_rows, step.shape.visible_max),
       .absorbed = absorbed});
  return selection;
}

}  // namespace dsa
