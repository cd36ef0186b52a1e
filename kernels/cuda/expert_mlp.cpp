// ExpertMlp of a decode step.
//
// Two launches: the gate's, which also sorts the pairs, and the experts', which computes the shared
// one as well and has its first weights when the gate has chosen.  Where the shared expert's inner
// tiles would begin a second wave and are not cut into parts of K, since rows are many or K is
// short, its gate and up are computed before, by the gate's launch, and the experts' activates what
// they gave and computes its down (docs/kernels/experts.md).
#include "kernels/fused/expert_mlp.h"

#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/few_gate.h"
#include "kernels/cuda/product_and_gate.h"
#include "kernels/cuda/resident_experts.h"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/fused/project.h"

#include <array>

namespace dsa {
namespace {

// One x with an fp8 copy of the experts' format, few rows, and kernels for all of it.
bool IsTaken(const ExpertMlpParams& params) {
  if (!params.shared) {
    return false;
  }
  const RoutedExpertsParams& routed = params.routed;
  const Activation& input = params.shared->x;
  return input.fp8.values.data != nullptr && input.fp8.format == routed.scale_format &&
         input.x.data == routed.x.data && params.gate.x.data == routed.x.data &&
         routed.x.rows <= cuda::kPreparedRowsMax && routed.gate.experts < cuda::kFewGateExperts &&
         cuda::FewGateTakes(params.gate) && cuda::ResidentExpertsTakes(routed, input.fp8);
}

// Gate and up of the shared expert, and the layer's gate.
void ProjectBesideGate(CudaBackend& backend, const GatedMlpParams& mlp,
                       const cuda::FewGateCall& gate, cudaStream_t stream) {
  const std::array products = {ScaledProduct(mlp.x, mlp.gate, mlp.inner.x),
                               ScaledProduct(mlp.x, mlp.up, mlp.up_output)};
  for (const BlockScaledLinearParams& product : products) {
    Validate(product);
  }
  if (cuda::ProductsAndGateTake(products, gate.gate)) {
    cuda::ProductsAndGate(products, gate, stream);
    return;
  }
  backend.Project({.x = mlp.x,
                   .projections = {{{.weight = mlp.gate, .y = mlp.inner.x},
                                    {.weight = mlp.up, .y = mlp.up_output}}}});
  cuda::FewGate(gate, stream);
}

// Every row goes to every expert: those of a slice with as many experts as a row has.  Where some
// may not be hit, stages asked for in vain would have to go through the ring.
bool GuessesHit(const ExpertMlpParams& params) {
  return params.routed.experts.cols == params.gate.weight.rows;
}

}  // namespace

void CudaBackend::ExpertMlp(const ExpertMlpParams& params) {
  Validate(params);
  Validate(params.gate);
  Validate(params.routed);
  if (!IsTaken(params)) {
    Backend::ExpertMlp(params);
    return;
  }
  const GatedMlpParams& mlp = *params.shared;
  cuda::SharedExpert shared{.gate = mlp.gate, .up = mlp.up, .down = mlp.down};
  const cuda::ActivateParams given{.gate = mlp.inner.x, .up = mlp.up_output, .y = mlp.inner.fp8};
  const bool computes_inner = cuda::SharedExpertFits(params.routed, shared);
  if (!computes_inner) {
    shared.given = &given;
  }
  const QuantizedView& input = mlp.x.fp8;
  if (!cuda::ResidentExpertsTakes(params.routed, shared, input)) {
    Backend::ExpertMlp(params);
    return;
  }
  const cuda::ResidentExpertsParams experts{.routed = params.routed,
                                            .shared_expert = &shared,
                                            .quantized_input = &input,
                                            .is_prepared = true,
                                            .rows_ready = state_->rows_ready.As<unsigned>(),
                                            .guesses_hit = GuessesHit(params)};
  cuda::ScratchArena arena(state_->scratch);
  const cuda::PairPreparation preparation = cuda::PreparationOf(experts, arena);
  const cuda::FewGateCall gate{.gate = params.gate,
                               .preparation = &preparation,
                               .logits = cuda::TakeFewGateLogits(arena, params.gate),
                               .counters = state_->attention_counters.As<unsigned>()};
  arena.CheckFits("ExpertMlp");
  if (computes_inner) {
    cuda::FewGate(gate, state_->stream);
  } else {
    ProjectBesideGate(*this, mlp, gate, state_->stream);
  }
  cuda::ResidentExperts(experts, state_->scratch, state_->stream);
}

}  // namespace dsa
