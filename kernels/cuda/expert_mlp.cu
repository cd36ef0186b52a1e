// ExpertMlp of a decode step.
//
// Two launches: the gate's, which also sorts the pairs, and the experts', which computes the shared
// one as well and has its first weights when the gate has chosen.  Where the shared expert's inner
// tiles would begin a second wave and are not cut into parts of K, since rows are many or K is
// short, its gate and up have a launch of their own before; the gate's then activates what they
// gave, and the experts' computes its down (docs/kernels/experts.md).
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/few_gate.h"
#include "kernels/cuda/resident_experts.h"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/fused/expert_mlp.h"
#include "kernels/fused/project.h"

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
  const bool computes_inner = cuda::SharedExpertFits(params.routed, shared);
  if (!computes_inner) {
    shared.inner = &mlp.inner.fp8;
  }
  const QuantizedView& input = mlp.x.fp8;
  if (!cuda::ResidentExpertsTakes(params.routed, shared, input) ||
      mlp.inner.x.type != DataType::kBf16) {
    Backend::ExpertMlp(params);
    return;
  }
  if (!computes_inner) {
    Project({.x = mlp.x,
             .projections = {{{.weight = mlp.gate, .y = mlp.inner.x},
                              {.weight = mlp.up, .y = mlp.up_output}}}});
  }
  const cuda::ActivateParams activation{
      .gate = mlp.inner.x, .up = mlp.up_output, .y = mlp.inner.fp8};
  const cuda::ResidentExpertsParams experts{.routed = params.routed,
                                            .shared_expert = &shared,
                                            .quantized_input = &input,
                                            .is_prepared = true};
  cuda::ScratchArena arena(state_->scratch);
  const cuda::PairPreparation preparation = cuda::PreparationOf(experts, arena);
  float* const logits = cuda::TakeFewGateLogits(arena, params.gate);
  arena.CheckFits("ExpertMlp");
  cuda::FewGate(params.gate,
                {.preparation = &preparation, .activation = computes_inner ? nullptr : &activation},
                logits, state_->attention_counters.As<unsigned>(), state_->stream);
  cuda::ResidentExperts(experts, state_->scratch, state_->stream);
}

}  // namespace dsa
