#include "model/transformer.h"

#include "common/check.h"
#include "kernels/comm/collectives.h"
#include "kernels/fused/add_norm.h"
#include "kernels/fused/project.h"
#include "kernels/ops/embed.h"
#include "kernels/ops/gather_rows.h"

namespace dsa {

Transformer::Transformer(const TransformerParts& parts)
    : parts_(parts), backend_(parts.backend), rank_(parts.rank) {
  const std::vector<LayerWeights>& layers = parts.weights.layers;
  DSA_CHECK(static_cast<std::int64_t>(layers.size()) == rank_.layers.count && !layers.empty(),
            "Transformer: weights of {} layers, a rank of {}", layers.size(), rank_.layers.count);
  DSA_CHECK(!parts.config.has_indexer() || layers.front().indexer,
            "Transformer: {} layers, no selection for the first", layers.size());
}

Matrix<const float> Transformer::Forward(const StepShape& shape, const DeviceBatch& device) {
  const Step step{.shape = shape, .device = device, .tokens = shape.tokens};
  if (shape.tokens == 0 && rank_.data_ranks > 1) {
    ComputeForOthers(step);
    return {};
  }
  backend_.PlanAttention(Paged(step, {.first = 0, .count = step.tokens}), rank_.heads.count,
                         parts_.batch_invariant);
  const AnyMatrix embedded = Values(Buffer::kResidual, step, parts_.config.hidden);
  backend_.Embed({.ids = device.token_ids, .table = parts_.weights.embedding, .x = embedded});
  for (int index = 0; index < static_cast<int>(rank_.layers.count); ++index) {
    const LayerView layer = Layer(index);
    // The first layer's residual is the embedding itself: nothing is added before its norm.
    if (index == 0) {
      backend_.AddNorm({.x = embedded,
                        .residual = NullMatrix(embedded.type),
                        .weight = layer.weights.attention_norm,
                        .eps = parts_.config.norm_eps,
                        .y = Normed(step)});
    } else {
      const LayerWeights& before = parts_.weights.layers[static_cast<std::size_t>(index) - 1];
      AddBranchAndNorm(step, FeedForwardBranch(before), layer.weights.attention_norm);
    }
    Attention(layer, step);
    AddBranchAndNorm(step, AttentionBranch(), layer.weights.ffn_norm);
    FeedForward(layer, step);
  }
  return Head(step);
}

// A step of a data rank that has no row: its experts are needed.
void Transformer::ComputeForOthers(const Step& step) {
  for (int index = 0; index < static_cast<int>(rank_.layers.count); ++index) {
    const LayerView layer = Layer(index);
    if (layer.weights.moe) {
      ExchangedMoe(layer, step);
    }
  }
}

LayerView Transformer::Layer(int layer) const {
  const LayerWeights& weights = parts_.weights.layers[static_cast<std::size_t>(layer)];
  return {.weights = weights,
          .latent = parts_.arena.Latent(layer),
          .indexer = parts_.config.has_indexer() && weights.indexer ? parts_.arena.Indexer(layer)
                                                                    : IndexerCacheView{},
          .expert_layer = layer - parts_.config.dense_layers};
}

AnyMatrix Transformer::Values(Buffer buffer, const Step& step, std::int64_t cols) const {
  return parts_.activations.AsActivation(buffer, step.tokens, cols);
}

Activation Transformer::WithFp8(const AnyMatrix& x, Buffer values, Buffer scales) const {
  if (!parts_.config.quantized) {
    return {.x = x};
  }
  const Activations& activations = parts_.activations;
  return {.x = x,
          .fp8 = {.values = activations.AsMatrix<Fp8E4m3>(values, x.rows, x.cols),
                  .scales = activations.AsMatrix<float>(scales, x.rows, Fp8Blocks(x.cols)),
                  .format = parts_.config.scale_format}};
}

Activation Transformer::Normed(const Step& step) const {
  return WithFp8(Values(Buffer::kNormed, step, parts_.config.hidden), Buffer::kNormedFp8,
                 Buffer::kNormedScales);
}

AnyMatrix Transformer::Partial(Buffer buffer, std::int64_t rows) const {
  const std::int64_t hidden = parts_.config.hidden;
  return {.data = parts_.activations.Data(buffer),
          .type = backend_.PartialSumType(),
          .rows = rows,
          .cols = hidden,
          .row_stride = hidden};
}

// Where rows were exchanged with the experts of all ranks, each gets all of its rows back.
Transformer::BranchKind Transformer::FeedForwardBranch(const LayerWeights& layer) const {
  return KindOf(rank_.ranks > 1 && !(layer.moe && rank_.data_ranks > 1));
}

AnyMatrix Transformer::Branch(const Step& step, BranchKind kind) const {
  return kind == BranchKind::kPart ? Partial(Buffer::kBranchPart, step.tokens)
                                   : Values(Buffer::kBranch, step, parts_.config.hidden);
}

// Of a rank that has nothing to add.
void Transformer::ClearBranch(const Step& step, BranchKind kind) {
  const AnyMatrix branch = Branch(step, kind);
  backend_.Zero(branch.data,
                static_cast<std::size_t>(branch.rows * branch.cols * SizeOf(branch.type)));
}

// residual += branch, of all ranks together; normed = RmsNorm of the sum before it was rounded.
void Transformer::AddBranchAndNorm(const Step& step, BranchKind kind,
                                   Vector<const float> norm_weight) {
  const std::int64_t hidden = parts_.config.hidden;
  const AnyMatrix whole = Values(Buffer::kBranch, step, hidden);
  backend_.AddNorm(
      {.x = whole,
       .residual = Values(Buffer::kResidual, step, hidden),
       .weight = norm_weight,
       .eps = parts_.config.norm_eps,
       .y = Normed(step),
       .partial = kind == BranchKind::kPart ? Branch(step, kind) : NullMatrix(whole.type)});
}

Matrix<const float> Transformer::Head(const Step& step) {
  const std::int64_t rows = step.shape.logit_rows;
  const std::int64_t hidden = parts_.config.hidden;
  const Activations& activations = parts_.activations;
  const bool is_whole = rank_.ranks == 1;
  const BranchKind kind = FeedForwardBranch(parts_.weights.layers.back());
  const auto logits = activations.AsMatrix<float>(is_whole ? Buffer::kLogits : Buffer::kLogitsPart,
                                                  rows, rank_.vocabulary.count);
  const AnyMatrix residual = activations.AsActivation(Buffer::kHeadResidual, rows, hidden);
  const AnyMatrix normed = activations.AsActivation(Buffer::kHeadNormed, rows, hidden);
  backend_.GatherRows({.x = Values(Buffer::kResidual, step, hidden),
                       .rows = step.device.logit_rows,
                       .y = residual});
  const bool is_part = kind == BranchKind::kPart;
  const AnyMatrix branch = is_part ? Partial(Buffer::kHeadPart, rows) : normed;
  backend_.GatherRows({.x = Branch(step, kind), .rows = step.device.logit_rows, .y = branch});
  backend_.AddNorm({.x = normed,
                    .residual = residual,
                    .weight = parts_.weights.final_norm,
                    .eps = parts_.config.norm_eps,
                    .y = {.x = normed},
                    .partial = is_part ? branch : NullMatrix(normed.type)});
  const LinearWeight weight = {.weight = parts_.weights.head, .scales = {}};
  backend_.Project({.x = {.x = normed}, .projections = {{{weight, AsAny(logits)}}}});
  return is_whole ? AsConst(logits) : GatherLogits(rows, logits);
}

Matrix<const float> Transformer::GatherLogits(std::int64_t rows, Matrix<float> logits) {
  const auto whole =
      parts_.activations.AsMatrix<float>(Buffer::kLogits, rows, parts_.config.vocabulary);
  backend_.AllGather({.part = AsAny(logits), .whole = AsAny(whole)});
  return AsConst(whole);
}

}  // namespace dsa
