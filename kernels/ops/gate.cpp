#include "kernels/ops/gate.h"

#include "kernels/ops/validate.h"

namespace dsa {

GateExtents Validate(const GateParams& params) {
  ShapeBinder shapes("Gate");
  const auto [tokens, hidden] = shapes.Match("x", params.x, "T", "D");
  const auto [experts, same_hidden] = shapes.Match("weight", params.weight, "E", "D");
  shapes.Match("bias", params.bias, "E");
  const auto [same_tokens, per_token] = shapes.Match("experts", params.experts, "T", "K");
  shapes.Match("weights", params.weights, "T", "K");
  if (params.expert_pairs.data != nullptr) {
    shapes.Match("expert_pairs", params.expert_pairs, "E");
  }
  DSA_CHECK(params.live_rows.data == nullptr || params.live_rows.size == 1,
            "Gate: live_rows has {} values", params.live_rows.size);
  CheckActivation("Gate", "x", params.x.type);
  CheckActivation("Gate", "weight", params.weight.type);
  DSA_CHECK(same_hidden > 0, "Gate: D={} for T={}", same_hidden, same_tokens);
  DSA_CHECK(params.groups > 0 && experts % params.groups == 0, "Gate: {} groups of E={} experts",
            params.groups, experts);
  DSA_CHECK(params.groups_kept >= 1 && params.groups_kept <= params.groups,
            "Gate: {} groups kept of {}", params.groups_kept, params.groups);
  DSA_CHECK(per_token >= 1 && per_token <= params.groups_kept * (experts / params.groups),
            "Gate: K={} of {} groups with {} experts each", per_token, params.groups_kept,
            experts / params.groups);
  return {.tokens = tokens, .hidden = hidden, .experts = experts, .experts_per_token = per_token};
}

}  // namespace dsa
