// The resident experts of a rank that leaves its part of the sum: what Down gives and the sum are
// float32, not rounded.
#include "kernels/cuda/resident_experts.cuh"

namespace dsa::cuda::resident_experts {

void LaunchExpertParts(const ExpertMaps& maps, const ExpertsParams& params, cudaStream_t stream) {
  LaunchExperts<float, Inner::kWhole>(maps, params, stream);
}

}  // namespace dsa::cuda::resident_experts
