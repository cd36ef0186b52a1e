#include "model/transformer.h"

#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/embed.h"
#include "kernels/ops/gather_rows.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/quantize_fp8.h"
#include "kernels/ops/rms_norm.h"

namespace dsa {

Matrix<const float> Transformer::Forward(const StepShape& shape, const DeviceBatch& device) {
  const Step step{.shape = shape, .device = device, .tokens = shape.tokens};
  const ModelWeights& weights = parts_.weights;
  const std::int64_t hidden = parts_.config.hidden;
  // The first layer's residual is the embedding itself: nothing is added before its norm.
  const AnyMatrix residual = Activation(Buffer::kResidual, step, hidden);
  backend_.Embed({.ids = device.token_ids, .table = weights.embedding, .x = residual});
  backend_.RmsNorm({.x = residual,
                    .residual = NullMatrix(residual.type),
                    .weight = weights.layers.front().attention_norm,
                    .y = Activation(Buffer::kNormed, step, hidden),
                    .eps = parts_.config.norm_eps});
  const auto layers = static_cast<int>(weights.layers.size());
  for (int layer = 0; layer < layers; ++layer) {
    const LayerWeights& current = weights.layers[static_cast<std::size_t>(layer)];
    if (layer > 0) {
      AddAndNorm(step, current.attention_norm);
    }
    Attention(layer, step);
    AddAndNorm(step, current.ffn_norm);
    FeedForward(layer, step);
  }
  return Head(step);
}

AnyMatrix Transformer::Activation(Buffer buffer, const Step& step, std::int64_t cols) const {
  return parts_.activations.AsActivation(buffer, step.tokens, cols);
}

// residual += branch; normed = RmsNorm of the sum before it was rounded.
void Transformer::AddAndNorm(const Step& step, Vector<const float> norm_weight) {
  const std::int64_t hidden = parts_.config.hidden;
  backend_.RmsNorm({.x = Activation(Buffer::kBranch, step, hidden),
                    .residual = Activation(Buffer::kResidual, step, hidden),
                    .weight = norm_weight,
                    .y = Activation(Buffer::kNormed, step, hidden),
                    .eps = parts_.config.norm_eps});
}

void Transformer::Project(ProjectionInput& input, const LinearWeight& weight, const AnyMatrix& y) {
  ProjectRows(input, {.first = 0, .count = input.x.rows}, weight, y);
}

void Transformer::ProjectRows(ProjectionInput& input, RowRange rows, const LinearWeight& weight,
                              const AnyMatrix& y) {
  if (!weight.quantized()) {
    backend_.Linear(
        {.x = RowsOfAny(input.x, rows.first, rows.count), .weight = weight.weight, .y = y});
    return;
  }
  const Activations& activations = parts_.activations;
  const std::int64_t cols = input.x.cols;
  const auto values = activations.AsMatrix<Fp8E4m3>(Buffer::kQuantized, input.x.rows, cols);
  const auto scales =
      activations.AsMatrix<float>(Buffer::kQuantizedScales, input.x.rows, Fp8Blocks(cols));
  if (!input.quantized) {
    backend_.QuantizeFp8({.x = input.x,
                          .values = values,
                          .scales = scales,
                          .scale_format = parts_.config.scale_format});
    input.quantized = true;
  }
  const ConstAnyMatrix& stored = weight.weight;
  backend_.BlockScaledLinear({.x = AsConst(RowsOf(values, rows.first, rows.count)),
                              .x_scales = AsConst(RowsOf(scales, rows.first, rows.count)),
                              .weight = {.data = static_cast<const Fp8E4m3*>(stored.data),
                                         .rows = stored.rows,
                                         .cols = stored.cols,
                                         .row_stride = stored.row_stride},
                              .weight_scales = weight.scales,
                              .y = y});
}

Matrix<const float> Transformer::Head(const Step& step) {
  const std::int64_t rows = step.shape.logit_rows;
  const std::int64_t hidden = parts_.config.hidden;
  const Activations& activations = parts_.activations;
  const auto logits = activations.AsMatrix<float>(Buffer::kLogits, rows, parts_.config.vocabulary);
  const AnyMatrix residual = activations.AsActivation(Buffer::kHeadResidual, rows, hidden);
  const AnyMatrix normed = activations.AsActivation(Buffer::kHeadNormed, rows, hidden);
  backend_.GatherRows({.x = Activation(Buffer::kResidual, step, hidden),
                       .rows = step.device.logit_rows,
                       .y = residual});
  backend_.GatherRows({.x = Activation(Buffer::kBranch, step, hidden),
                       .rows = step.device.logit_rows,
                       .y = normed});
  backend_.RmsNorm({.x = normed,
                    .residual = residual,
                    .weight = parts_.weights.final_norm,
                    .y = normed,
                    .eps = parts_.config.norm_eps});
  backend_.Linear({.x = normed, .weight = parts_.weights.head, .y = AsAny(logits)});
  return AsConst(logits);
}

}  // namespace dsa
