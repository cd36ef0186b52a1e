// The feed-forward half of a layer: a dense MLP in the leading layers, routed experts and a shared
// one in the others (DeepSeek-V3 paper, section 2.1.2).
#include "common/check.h"
#include "kernels/comm/collectives.h"
#include "kernels/fused/expert_mlp.h"
#include "kernels/fused/gated_mlp.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/routed_experts.h"
#include "model/transformer.h"

namespace dsa {
namespace {

// Of rows that came here, for parts; else there are none.
Matrix<float> ReceivedWeights(const Activations& activations, bool as_parts, std::int64_t rows,
                              std::int64_t per_token) {
  if (as_parts) {
    return activations.AsMatrix<float>(Buffer::kExchangeWeights, rows, per_token);
  }
  return {.data = nullptr, .rows = rows, .cols = per_token, .row_stride = per_token};
}

}  // namespace

void Transformer::FeedForward(const LayerView& layer, const Step& step) {
  const BranchKind kind = FeedForwardBranch(layer.weights);
  if (layer.weights.moe && rank_.data_ranks > 1) {
    ExchangedMoe(layer, step);
  } else if (layer.weights.moe) {
    Moe(layer, step);
  } else if (rank_.dense_width.count > 0) {
    backend_.GatedMlp(Mlp(step, *layer.weights.dense, rank_.dense_width.count, Branch(step, kind)));
  } else {
    ClearBranch(step, kind);
  }
}

// branch = down(SwiGlu(gate normed, up normed))
GatedMlpParams Transformer::Mlp(const Step& step, const MlpWeights& weights, std::int64_t width,
                                const AnyMatrix& branch) const {
  return {.x = Normed(step),
          .gate = weights.gate,
          .up = weights.up,
          .down = weights.down,
          .inner = WithFp8(Values(Buffer::kMlpGate, step, width), Buffer::kMlpGateFp8,
                           Buffer::kMlpGateScales),
          .up_output = Values(Buffer::kMlpUp, step, width),
          .y = branch};
}

// The experts of every row of normed, and their weights.
GateParams Transformer::Gate(const LayerView& layer, const Step& step) const {
  const MoeWeights& weights = *layer.weights.moe;
  const Matrix<std::int32_t>& pairs = step.device.expert_pairs;
  const ModelConfig& config = parts_.config;
  const Activations& activations = parts_.activations;
  DSA_CHECK(pairs.data == nullptr || (layer.expert_layer >= 0 && layer.expert_layer < pairs.rows),
            "Transformer: layer {} of {} with experts", layer.expert_layer, pairs.rows);
  return {.x = Normed(step).x,
          .weight = weights.gate,
          .bias = weights.gate_bias,
          .groups = config.expert_groups,
          .groups_kept = config.expert_groups_kept,
          .normalize = config.normalize_expert_weights,
          .scale = config.routed_scale,
          .experts = activations.AsMatrix<std::int32_t>(Buffer::kExperts, step.tokens,
                                                        config.experts_per_token),
          .weights = activations.AsMatrix<float>(Buffer::kExpertWeights, step.tokens,
                                                 config.experts_per_token),
          .live_rows = step.device.live_rows,
          .expert_pairs = pairs.data == nullptr
                              ? Vector<std::int32_t>{}
                              : Vector<std::int32_t>{.data = pairs.Row(layer.expert_layer),
                                                     .size = pairs.cols}};
}

// branch = sum of the chosen experts of normed, and the shared one
void Transformer::Moe(const LayerView& layer, const Step& step) {
  const MoeWeights& weights = *layer.weights.moe;
  const BranchKind kind = AttentionBranch();
  const AnyMatrix branch = Branch(step, kind);
  const std::int64_t shared_width = weights.shared ? rank_.shared_width.count : 0;
  if (rank_.expert_width.count == 0 || rank_.experts.count == 0) {  // nothing to route here
    if (step.device.expert_pairs.data != nullptr) {
      backend_.Gate(Gate(layer, step));  // counts: the step's results are those of one rank
    }
    if (shared_width > 0) {
      backend_.GatedMlp(Mlp(step, *weights.shared, shared_width, branch));
    } else {
      ClearBranch(step, kind);
    }
    return;
  }
  const GateParams gate = Gate(layer, step);
  ExpertMlpParams params = {.gate = gate,
                            .shared = {},
                            .routed = {.x = gate.x,
                                       .gate = weights.expert_gate,
                                       .up = weights.expert_up,
                                       .down = weights.expert_down,
                                       .first_expert = rank_.experts.first,
                                       .experts = AsConst(gate.experts),
                                       .weights = AsConst(gate.weights),
                                       .shared = NullMatrix(branch.type),
                                       .scale_format = parts_.config.scale_format,
                                       .y = branch}};
  if (shared_width > 0) {
    params.shared = Mlp(step, *weights.shared, shared_width, branch);
    params.routed.shared = branch;
  }
  backend_.ExpertMlp(params);
}

// The same where rows go to the experts of all ranks and come back: the same bits, since each row's
// rank adds what experts give it in the order of its gate, unless few rows come back as parts
// (kernels/comm/collectives.h).
void Transformer::ExchangedMoe(const LayerView& layer, const Step& step) {
  const MoeWeights& weights = *layer.weights.moe;
  const Activations& activations = parts_.activations;
  const std::int64_t hidden = parts_.config.hidden;
  const std::int64_t per_token = parts_.config.experts_per_token;
  const std::int64_t rows = step.shape.exchange_rows;
  const std::int64_t all_rows = rank_.data_ranks * rows;
  const AnyMatrix branch = activations.AsActivation(Buffer::kBranch, rows, hidden);
  const AnyMatrix received = activations.AsActivation(Buffer::kExchangeRows, all_rows, hidden);
  const AnyMatrix contributions =
      activations.AsActivation(Buffer::kExpertResults, all_rows * per_token, hidden);
  const bool as_parts =
      parts_.combines_parts &&
      per_token * SizeOf(branch.type) >= SizeOf(DataType::kF32) &&  // else there is no room
      CanCombineParts({.tokens = rows, .hidden = hidden, .experts_per_token = per_token});
  const AnyMatrix parts = {.data = as_parts ? contributions.data : nullptr,
                           .type = DataType::kF32,
                           .rows = all_rows,
                           .cols = hidden,
                           .row_stride = hidden};
  const auto received_experts =
      activations.AsMatrix<std::int32_t>(Buffer::kExchangeExperts, all_rows, per_token);
  const Matrix<float> received_weights =
      ReceivedWeights(activations, as_parts, all_rows, per_token);
  const auto experts = activations.AsMatrix<std::int32_t>(Buffer::kExperts, rows, per_token);
  const auto expert_weights = activations.AsMatrix<float>(Buffer::kExpertWeights, rows, per_token);
  const ExpertRange here = {.first = rank_.experts.first, .count = rank_.experts.count};
  if (step.tokens > 0) {
    backend_.Gate(Gate(layer, step));
  }
  DispatchParams dispatch = {.x = activations.AsActivation(Buffer::kNormed, rows, hidden),
                             .experts = AsConst(experts),
                             .live_rows = step.device.live_rows,
                             .here = here,
                             .copies = rank_.ranks,
                             .rows = received,
                             .row_experts = received_experts};
  if (as_parts) {
    dispatch.weights = AsConst(expert_weights);
    dispatch.row_weights = received_weights;
  }
  backend_.Dispatch(dispatch);
  if (here.count > 0) {
    backend_.RoutedExperts({.x = received,
                            .gate = weights.expert_gate,
                            .up = weights.expert_up,
                            .down = weights.expert_down,
                            .first_expert = here.first,
                            .experts = AsConst(received_experts),
                            .weights = AsConst(received_weights),
                            .shared = NullMatrix(as_parts ? parts.type : branch.type),
                            .scale_format = parts_.config.scale_format,
                            .y = as_parts ? parts : received,  // not written beside contributions
                            .contributions = as_parts ? AnyMatrix{} : contributions});
  }
  if (weights.shared && step.tokens > 0) {
    backend_.GatedMlp(
        Mlp(step, *weights.shared, rank_.shared_width.count, Branch(step, BranchKind::kWhole)));
  }
  backend_.Combine({.contributions = contributions,
                    .row_experts = AsConst(received_experts),
                    .experts = AsConst(experts),
                    .live_rows = step.device.live_rows,
                    .weights = AsConst(expert_weights),
                    .here = here,
                    .copies = rank_.ranks,
                    .shared = weights.shared ? branch : NullMatrix(branch.type),
                    .y = branch,
                    .parts = parts});
}

}  // namespace dsa
