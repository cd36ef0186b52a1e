// The feed-forward half of a layer: a dense MLP in the leading layers, routed experts and a shared
// one in the others (DeepSeek-V3 paper, section 2.1.2).
#include "kernels/fused/expert_mlp.h"
#include "kernels/fused/gated_mlp.h"
#include "model/transformer.h"

namespace dsa {

void Transformer::FeedForward(const LayerView& layer, const Step& step) {
  if (layer.weights.moe) {
    Moe(step, *layer.weights.moe);
  } else if (rank_.dense_width.count > 0) {
    backend_.GatedMlp(Mlp(step, *layer.weights.dense, rank_.dense_width.count));
  } else {
    ClearBranch(step);
  }
}

// branch = down(SwiGlu(gate normed, up normed))
GatedMlpParams Transformer::Mlp(const Step& step, const MlpWeights& weights,
                                std::int64_t width) const {
  return {.x = Normed(step),
          .gate = weights.gate,
          .up = weights.up,
          .down = weights.down,
          .inner = WithFp8(Values(Buffer::kMlpGate, step, width), Buffer::kMlpGateFp8,
                           Buffer::kMlpGateScales),
          .up_output = Values(Buffer::kMlpUp, step, width),
          .y = Branch(step)};
}

// branch = sum of the chosen experts of normed, and the shared one
void Transformer::Moe(const Step& step, const MoeWeights& weights) {
  const ModelConfig& config = parts_.config;
  const Activations& activations = parts_.activations;
  const AnyMatrix normed = Normed(step).x;
  const AnyMatrix branch = Branch(step);
  const std::int64_t shared_width = weights.shared ? rank_.shared_width.count : 0;
  if (rank_.expert_width.count == 0 || rank_.experts.count == 0) {  // nothing to route here
    if (shared_width > 0) {
      backend_.GatedMlp(Mlp(step, *weights.shared, shared_width));
    } else {
      ClearBranch(step);
    }
    return;
  }
  const auto experts =
      activations.AsMatrix<std::int32_t>(Buffer::kExperts, step.tokens, config.experts_per_token);
  const auto expert_weights =
      activations.AsMatrix<float>(Buffer::kExpertWeights, step.tokens, config.experts_per_token);
  ExpertMlpParams params = {.gate = {.x = normed,
                                     .weight = weights.gate,
                                     .bias = weights.gate_bias,
                                     .groups = config.expert_groups,
                                     .groups_kept = config.expert_groups_kept,
                                     .normalize = config.normalize_expert_weights,
                                     .scale = config.routed_scale,
                                     .experts = experts,
                                     .weights = expert_weights},
                            .shared = {},
                            .routed = {.x = normed,
                                       .gate = weights.expert_gate,
                                       .up = weights.expert_up,
                                       .down = weights.expert_down,
                                       .first_expert = rank_.experts.first,
                                       .experts = AsConst(experts),
                                       .weights = AsConst(expert_weights),
                                       .shared = NullMatrix(branch.type),
                                       .scale_format = config.scale_format,
                                       .y = branch}};
  if (shared_width > 0) {
    params.shared = Mlp(step, *weights.shared, shared_width);
    params.routed.shared = branch;
  }
  backend_.ExpertMlp(params);
}

}  // namespace dsa
