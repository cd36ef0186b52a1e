// Multi-head latent attention of one layer (DeepSeek-V2 paper, section 2.1): every row's keys are
// written into the cache first and then read back from it, so a row sees the same bits whether a
// key was computed in this step, in an earlier one, or by another request.
#include "common/check.h"
#include "kernels/batch_view.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/key_selection.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/ops/masked_attention.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/store_latent.h"
#include "model/transformer.h"

namespace dsa {

void Transformer::Attention(int layer, const Step& step) {
  const ModelConfig& config = parts_.config;
  const LayerWeights& weights = parts_.weights.layers[static_cast<std::size_t>(layer)];
  const AttentionWeights& attention = weights.attention;
  ProjectionInput normed{.x = Activation(Buffer::kNormed, step, config.hidden)};
  ProjectionInput query_latent{.x = Activation(Buffer::kQueryLatent, step, config.q_latent)};
  const AnyMatrix query =
      Activation(Buffer::kQuery, step, config.heads * (config.nope + kRopeWidth));
  if (config.q_latent > 0) {
    Project(normed, attention.q_a, query_latent.x);
  } else {
    Project(normed, attention.q_b, query);
  }
  WriteKeys(layer, step, normed);
  if (config.has_indexer()) {
    WriteIndexerKeys(layer, step, normed);
  }
  if (config.q_latent > 0) {
    backend_.RmsNorm({.x = query_latent.x,
                      .residual = NullMatrix(query_latent.x.type),
                      .weight = attention.q_a_norm,
                      .y = query_latent.x,
                      .eps = config.latent_norm_eps});
    Project(query_latent, attention.q_b, query);
  }
  backend_.Rope({.x = ColumnsOf(HeadsOf(query, config.heads), config.nope, kRopeWidth),
                 .positions = step.device.positions,
                 .table = parts_.rope_table,
                 .layout = RopeLayout::kInterleaved});
  std::int64_t first = 0;
  for (int path = 0; path < kAttentionPaths; ++path) {
    const RowRange rows{.first = first,
                        .count = step.shape.rows.at(static_cast<std::size_t>(path))};
    if (rows.count > 0) {
      Attend(layer, step, query_latent, static_cast<AttentionPath>(path), rows);
    }
    first += rows.count;
  }
  ProjectionInput output{
      .x = Activation(Buffer::kAttentionOutput, step, config.heads * config.value)};
  Project(output, attention.o, Activation(Buffer::kBranch, step, config.hidden));
}

void Transformer::WriteKeys(int layer, const Step& step, ProjectionInput& normed) {
  const AttentionWeights& weights =
      parts_.weights.layers[static_cast<std::size_t>(layer)].attention;
  const AnyMatrix kv = Activation(Buffer::kKeyValue, step, kLatentWidth + kRopeWidth);
  Project(normed, weights.kv_a, kv);
  backend_.StoreLatent({.kv = kv,
                        .norm_weight = weights.kv_a_norm,
                        .eps = parts_.config.latent_norm_eps,
                        .positions = step.device.positions,
                        .table = parts_.rope_table,
                        .layout = RopeLayout::kInterleaved,
                        .slots = step.device.slots,
                        .cache = parts_.arena.Latent(layer)});
}

void Transformer::Attend(int layer, const Step& step, ProjectionInput& query_input,
                         AttentionPath path, RowRange rows) {
  KeySelection selection{};
  if (Selects(path)) {
    DSA_CHECK(parts_.config.has_indexer(), "Attention: a selection without an indexer");
    selection = SelectKeys(layer, step, query_input, rows, IsMasked(path));
  }
  if (IsMasked(path)) {
    AttendMasked(layer, step, rows, selection);
  } else {
    AttendLatent(layer, step, rows, selection);
  }
}

void Transformer::AttendLatent(int layer, const Step& step, RowRange rows,
                               const KeySelection& selection) {
  const ModelConfig& config = parts_.config;
  const AttentionWeights& weights =
      parts_.weights.layers[static_cast<std::size_t>(layer)].attention;
  const AnyTensor3 query = QueryHeads(step, rows);
  const auto latent_heads = [&](Buffer buffer) {
    const AnyMatrix all = Activation(buffer, step, config.heads * kLatentWidth);
    return HeadsOf(RowsOfAny(all, rows.first, rows.count), config.heads);
  };
  const AnyTensor3 absorbed = latent_heads(Buffer::kAbsorbedQuery);
  const AnyTensor3 latent_output = latent_heads(Buffer::kLatentOutput);
  const AnyMatrix output = Activation(Buffer::kAttentionOutput, step, config.heads * config.value);
  backend_.AbsorbQuery(
      {.q_nope = ColumnsOf(query, 0, config.nope), .w_uk = weights.w_uk, .q_latent = absorbed});
  backend_.LatentAttention({.q_latent = absorbed,
                            .q_rope = ColumnsOf(query, config.nope, kRopeWidth),
                            .cache = parts_.arena.Latent(layer),
                            .rows = Paged(step, rows),
                            .selection = selection,
                            .softmax_scale = config.softmax_scale,
                            .o_latent = latent_output});
  backend_.ExpandValue({.o_latent = latent_output,
                        .w_uv = weights.w_uv,
                        .o = HeadsOf(RowsOfAny(output, rows.first, rows.count), config.heads)});
}

void Transformer::AttendMasked(int layer, const Step& step, RowRange rows,
                               const KeySelection& selection) {
  const ModelConfig& config = parts_.config;
  const AttentionWeights& weights =
      parts_.weights.layers[static_cast<std::size_t>(layer)].attention;
  const AnyMatrix output = Activation(Buffer::kAttentionOutput, step, config.heads * config.value);
  backend_.MaskedAttention({.q = QueryHeads(step, rows),
                            .w_uk = weights.w_uk,
                            .w_uv = weights.w_uv,
                            .cache = parts_.arena.Latent(layer),
                            .rows = Paged(step, rows),
                            .selection = selection,
                            .softmax_scale = config.softmax_scale,
                            .o = HeadsOf(RowsOfAny(output, rows.first, rows.count), config.heads)});
}

PagedRows Transformer::Paged(const Step& step, RowRange rows) const {
  return {.positions = RowsOf(step.device.positions, rows.first, rows.count),
          .sequences = RowsOf(step.device.sequences, rows.first, rows.count),
          .block_tables = step.device.block_tables};
}

AnyTensor3 Transformer::QueryHeads(const Step& step, RowRange rows) const {
  const std::int64_t width = parts_.config.nope + kRopeWidth;
  const AnyMatrix query = Activation(Buffer::kQuery, step, parts_.config.heads * width);
  return HeadsOf(RowsOfAny(query, rows.first, rows.count), parts_.config.heads);
}

}  // namespace dsa
