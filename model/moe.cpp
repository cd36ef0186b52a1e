// The feed-forward half of a layer: a dense MLP in the leading layers, routed experts and a shared
// one in the others (DeepSeek-V3 paper, section 2.1.2).
#include "kernels/ops/gate.h"
#include "kernels/ops/swiglu.h"
#include "model/transformer.h"

namespace dsa {

void Transformer::FeedForward(int layer, const Step& step) {
  const LayerWeights& weights = parts_.weights.layers[static_cast<std::size_t>(layer)];
  if (weights.dense) {
    ProjectionInput normed{.x = Activation(Buffer::kNormed, step, parts_.config.hidden)};
    Mlp(step, normed, *weights.dense);
  } else {
    Moe(step, *weights.moe);
  }
}

// branch = down(SwiGlu(gate x, up x))
void Transformer::Mlp(const Step& step, ProjectionInput& input, const MlpWeights& weights) {
  const std::int64_t width = weights.gate.weight.rows;
  const AnyMatrix gate = Activation(Buffer::kMlpGate, step, width);
  const AnyMatrix up = Activation(Buffer::kMlpUp, step, width);
  Project(input, weights.gate, gate);
  Project(input, weights.up, up);
  backend_.SwiGlu({.gate = gate, .up = up, .y = gate});
  ProjectionInput inner{.x = gate};
  Project(inner, weights.down, Activation(Buffer::kBranch, step, parts_.config.hidden));
}

void Transformer::Moe(const Step& step, const MoeWeights& weights) {
  const ModelConfig& config = parts_.config;
  const Activations& activations = parts_.activations;
  const AnyMatrix normed = Activation(Buffer::kNormed, step, config.hidden);
  const AnyMatrix branch = Activation(Buffer::kBranch, step, config.hidden);
  const auto experts =
      activations.AsMatrix<std::int32_t>(Buffer::kExperts, step.tokens, config.experts_per_token);
  const auto expert_weights =
      activations.AsMatrix<float>(Buffer::kExpertWeights, step.tokens, config.experts_per_token);
  backend_.Gate({.x = normed,
                 .weight = weights.gate,
                 .bias = weights.gate_bias,
                 .groups = config.expert_groups,
                 .groups_kept = config.expert_groups_kept,
                 .normalize = config.normalize_expert_weights,
                 .scale = config.routed_scale,
                 .experts = experts,
                 .weights = expert_weights});
  ConstAnyMatrix shared = branch;
  if (weights.shared) {
    ProjectionInput input{.x = normed};
    Mlp(step, input, *weights.shared);
  } else {
    shared.data = nullptr;
  }
  backend_.RoutedExperts({.x = normed,
                          .gate = weights.expert_gate,
                          .up = weights.expert_up,
                          .down = weights.expert_down,
                          .experts = AsConst(experts),
                          .weights = AsConst(expert_weights),
                          .shared = shared,
                          .scale_format = config.scale_format,
                          .y = branch});
}

}  // namespace dsa
