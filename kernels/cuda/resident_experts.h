// The experts of a layer in one resident launch behind a short one that sorts: fp8 weights,
// bfloat16 activations.  Experts with many rows each take the launches of expert_tiles.h instead.
#pragma once

#include "kernels/cuda/activate.h"
#include "kernels/cuda/expert_pairs.h"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/fused/activation.h"
#include "kernels/ops/routed_experts.h"

#include <cuda_runtime_api.h>

namespace dsa::cuda {

// A shared expert to be computed beside the routed ones, as wide as they are.
struct SharedExpert {
  LinearWeight gate;  // [I, D]
  LinearWeight up;    // [I, D]
  LinearWeight down;  // [D, I]
  // Where launches before have computed gate and up: what they gave, in bfloat16, and where its
  // activation goes; null: all is computed here.
  const ActivateParams* given = nullptr;
};

struct ResidentExpertsParams {
  RoutedExpertsParams routed;            // its `shared` is added unless `shared_expert` is here
  const SharedExpert* shared_expert;     // null: none
  const QuantizedView* quantized_input;  // the fp8 copy of x; null: made here
  bool is_prepared = false;              // what PreparationOf says has been done
  unsigned* rows_ready = nullptr;        // a word, zero between launches; where it is prepared
  bool guesses_hit = false;              // all experts here are chosen, whatever the gate says
};

// Whether ResidentExperts computes them: bfloat16 x and bfloat16 or float32 y with 16-byte aligned
// rows, fp8 weights, D and I multiples of 128, room for the sort.
bool ResidentExpertsTakes(const RoutedExpertsParams& params);
// The same with an fp8 copy of x, whose rows are to be aligned, too, and with a shared expert.
bool ResidentExpertsTakes(const RoutedExpertsParams& params, const QuantizedView& quantized_input);
bool ResidentExpertsTakes(const RoutedExpertsParams& params, const SharedExpert& shared_expert,
                          const QuantizedView& quantized_input);

// Whether the shared expert leaves the first products even: they are at most a tile per block,
// whatever experts the rows go to, or the shared expert's are cut into parts of K.
bool SharedExpertFits(const RoutedExpertsParams& params, const SharedExpert& shared_expert);

// Whether experts leave float32 that other ranks add to.
inline bool LeavesParts(const ScratchLimits& limits) {
  return limits.expert_sum_type != DataType::kF32;
}

std::int64_t ResidentExpertsScratchBytes(const ScratchLimits& limits);

// What a launch before ResidentExperts may do instead of its own short one, for rows that take one
// pass and have `quantized_input`.  Takes the first regions of an arena over the scratch that
// ResidentExperts gets; nothing may write to them until then.
inline constexpr std::int64_t kPreparedRowsMax = 64;
PairPreparation PreparationOf(const ResidentExpertsParams& params, ScratchArena& arena);

// A token's bits do not depend on the tokens beside it, nor on where tokens are cut into passes.
// Any stream, capture included.
void ResidentExperts(const ResidentExpertsParams& params, const DeviceBuffer& scratch,
                     cudaStream_t stream);

}  // namespace dsa::cuda
