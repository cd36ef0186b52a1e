// A mixture of experts (DeepSeek-V3 paper, section 2.1.2): the gate chooses experts for each token,
// the routed experts add up what they give it, the shared expert's output last.
//
// Tokens go to other ranks between the gate and the routed experts.
#pragma once

#include "kernels/fused/gated_mlp.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/routed_experts.h"

#include <optional>

namespace dsa {

struct ExpertMlpParams {
  GateParams gate;                       // its experts and weights are those of `routed`
  std::optional<GatedMlpParams> shared;  // its y is routed.shared, and may be routed.y
  RoutedExpertsParams routed;
};
// CHECKs that the experts read what the gate writes and add what the shared expert gives.
void Validate(const ExpertMlpParams& params);

}  // namespace dsa
