// Multi-head latent attention of one layer (DeepSeek-V2 paper, section 2.1): every row's keys are
// written into the cache first and then read back from it, so a row sees the same bits whether a
// key was computed in this step, in an earlier one, or by another request.
//
//   query_latent, index_key, kv, head_weights = W normed      Project
//   caches <- latent of kv, indexer key of index_key          WriteKeys (norms query_latent)
//   query, index_query                        = W query_latent  Project
//   selection = top-k(index_query . indexer keys)             SelectKeys, for rows past top-k
//   output    = attention(query, latents of the selection)    AttendLatent or AttendMasked
//   branch    = W_o output                                    Project
#include "common/check.h"
#include "kernels/batch_view.h"
#include "kernels/fused/attend.h"
#include "kernels/fused/project.h"
#include "kernels/fused/write_keys.h"
#include "kernels/ops/key_selection.h"
#include "model/transformer.h"

#include <algorithm>

namespace dsa {

void Transformer::Attention(const LayerView& layer, const Step& step) {
  const ModelConfig& config = parts_.config;
  const AttentionWeights& weights = layer.weights.attention;
  const bool has_query_latent = config.q_latent > 0;
  const Activation normed = Normed(step);
  const Activation query_latent = WithFp8(Values(Buffer::kQueryLatent, step, config.q_latent),
                                          Buffer::kQueryLatentFp8, Buffer::kQueryLatentScales);
  const AnyMatrix query =
      Values(Buffer::kQuery, step, rank_.heads.count * (config.nope + kRopeWidth));
  const IndexerRows indexer = RowsOfIndexer(layer, step);

  backend_.Project({.x = normed,
                    .projections = {{has_query_latent ? Projection{weights.q_a, query_latent.x}
                                                      : Projection{weights.q_b, query},
                                     indexer.key,
                                     {weights.kv_a, KeyValue(step)},
                                     indexer.head_weights}}});
  WriteKeys(layer, step, query_latent);
  bool is_absorbed = false;
  if (has_query_latent) {
    ProjectParams queries = {.x = query_latent,
                             .projections = {{{weights.q_b, query}, indexer.query}}};
    if (!step.has_masked()) {
      queries.absorbed = {.queries = {.q = HeadsOf(query, rank_.heads.count),
                                      .table = parts_.rope_table,
                                      .layout = RopeLayout::kInterleaved,
                                      .w_uk = weights.w_uk,
                                      .q_latent = HeadsOf(AbsorbedQuery(step), rank_.heads.count)},
                          .positions = step.device.positions};
      is_absorbed = backend_.AbsorbsInProject(queries);
      if (!is_absorbed) {
        queries.absorbed.reset();
      }
    }
    backend_.Project(queries);
  }
  std::int64_t first = 0;
  for (int path = 0; path < kAttentionPaths; ++path) {
    const std::int64_t rows = step.shape.rows.at(static_cast<std::size_t>(path));
    if (rows > 0) {
      Attend(layer, step, static_cast<AttentionPath>(path), {.first = first, .count = rows},
             is_absorbed);
    }
    first += rows;
  }
  backend_.Project({.x = AttentionOutput(step),
                    .projections = {{{weights.o, Branch(step, AttentionBranch())}}}});
}

void Transformer::WriteKeys(const LayerView& layer, const Step& step,
                            const Activation& query_latent) {
  const ModelConfig& config = parts_.config;
  const AttentionWeights& weights = layer.weights.attention;
  std::optional<StoreIndexerKeyParams> indexer_key;
  if (layer.has_indexer()) {
    const IndexerWeights& indexer = *layer.weights.indexer;
    indexer_key = {.k = Values(Buffer::kIndexKey, step, kIndexHeadWidth),
                   .norm_weight = indexer.k_norm_weight,
                   .norm_bias = indexer.k_norm_bias,
                   .eps = kIndexNormEps,
                   .positions = step.device.positions,
                   .table = parts_.rope_table,
                   .layout = config.index_rope_layout,
                   .slots = step.device.slots,
                   .cache = layer.indexer};
  }
  backend_.WriteKeys({.query_latent = config.q_latent > 0 ? query_latent : Activation{},
                      .query_norm_weight = weights.q_a_norm,
                      .query_norm_eps = config.latent_norm_eps,
                      .latent = {.kv = KeyValue(step),
                                 .norm_weight = weights.kv_a_norm,
                                 .eps = config.latent_norm_eps,
                                 .positions = step.device.positions,
                                 .table = parts_.rope_table,
                                 .layout = RopeLayout::kInterleaved,
                                 .slots = step.device.slots,
                                 .cache = layer.latent},
                      .indexer_key = indexer_key});
}

void Transformer::Attend(const LayerView& layer, const Step& step, AttentionPath path,
                         RowRange rows, bool is_absorbed) {
  const ModelConfig& config = parts_.config;
  const AttentionWeights& weights = layer.weights.attention;
  const auto heads_of = [&](const AnyMatrix& all) {
    return HeadsOf(RowsOfAny(all, rows.first, rows.count), rank_.heads.count);
  };
  AttendParams attend = {
      .q = heads_of(Values(Buffer::kQuery, step, rank_.heads.count * (config.nope + kRopeWidth))),
      .table = parts_.rope_table,
      .layout = RopeLayout::kInterleaved,
      .w_uk = weights.w_uk,
      .w_uv = weights.w_uv,
      .w_uv_fp8 = weights.w_uv_fp8,
      .cache = layer.latent,
      .rows = Paged(step, rows),
      .selection = {},
      .softmax_scale = config.softmax_scale,
      .o = RowsOf(AttentionOutput(step), rows.first, rows.count)};
  DSA_CHECK(!Selects(path) || config.has_indexer(), "Attention: a selection without an indexer");
  if (IsMasked(path)) {
    if (Selects(path)) {
      attend.selection = SelectKeys(layer, step, rows, true, std::nullopt);
    }
    backend_.AttendMasked({.attend = attend});
    return;
  }
  const std::int64_t width = rank_.heads.count * kLatentWidth;
  AttendLatentParams latent = {.attend = attend,
                               .q_latent = heads_of(AbsorbedQuery(step)),
                               .o_latent = heads_of(Values(Buffer::kLatentOutput, step, width)),
                               .is_absorbed = is_absorbed};
  if (Selects(path)) {
    latent.attend.selection = SelectKeys(
        layer, step, rows, false, is_absorbed ? std::nullopt : std::optional(QueriesOf(latent)));
    latent.is_absorbed = is_absorbed || layer.has_indexer();
  }
  backend_.AttendLatent(latent);
}

AnyMatrix Transformer::KeyValue(const Step& step) const {
  return Values(Buffer::kKeyValue, step, kLatentWidth + kRopeWidth);
}

AnyMatrix Transformer::AbsorbedQuery(const Step& step) const {
  return Values(Buffer::kAbsorbedQuery, step, rank_.heads.count * kLatentWidth);
}

Activation Transformer::AttentionOutput(const Step& step) const {
  return WithFp8(Values(Buffer::kAttentionOutput, step, rank_.heads.count * parts_.config.value),
                 Buffer::kAttentionOutputFp8, Buffer::kAttentionOutputScales);
}

PagedRows Transformer::Paged(const Step& step, RowRange rows) const {
  return {.positions = RowsOf(step.device.positions, rows.first, rows.count),
          .sequences = RowsOf(step.device.sequences, rows.first, rows.count),
          .block_tables = step.device.block_tables,
          .group = std::max<std::int64_t>(1, step.shape.rows_per_sequence),
          .visible_max = step.shape.visible_max,
          .has_runs = step.shape.rows_per_sequence == 0};
}

}  // namespace dsa
