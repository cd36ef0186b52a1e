// The experts of a layer in one resident launch behind a short one that sorts: fp8 weights,
// bfloat16 activations.
#pragma once

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
};

struct ResidentExpertsParams {
  RoutedExpertsParams routed;            // its `shared` is added unless `shared_expert` is here
  const SharedExpert* shared_expert;     // null: none
  const QuantizedView* quantized_input;  // the fp8 copy of x; null: made here
};

// Whether ResidentExperts computes them: bfloat16 x and y with 16-byte aligned rows, fp8 weights,
// D and I multiples of 128, room for the sort.
bool ResidentExpertsTakes(const RoutedExpertsParams& params);
// The same of a shared expert beside them and an fp8 copy of x, whose rows are to be aligned, too.
bool ResidentExpertsTakes(const RoutedExpertsParams& params, const SharedExpert& shared_expert,
                          const QuantizedView& quantized_input);

std::int64_t ResidentExpertsScratchBytes(const ScratchLimits& limits);

// A token's bits do not depend on the tokens beside it, nor on where tokens are cut into passes.
// Any stream, capture included.
void ResidentExperts(const ResidentExpertsParams& params, const DeviceBuffer& scratch,
                     cudaStream_t stream);

}  // namespace dsa::cuda
