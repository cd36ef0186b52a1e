// The resident experts that leave what they give, pair by pair, for a Combine of ranks.
#include "kernels/cuda/resident_experts.cuh"

namespace dsa::cuda::resident_experts {

void LaunchExpertPairs(const ExpertMaps& maps, const ExpertsParams& params, cudaStream_t stream) {
  LaunchExperts<__nv_bfloat16, Inner::kWhole, true>(maps, params, stream);
}

}  // namespace dsa::cuda::resident_experts
