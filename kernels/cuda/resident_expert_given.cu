// The resident launch where gate and up of the shared expert were computed before it: apart, since
// the others' warps have no registers to spare.
#include "kernels/cuda/resident_experts.cuh"

namespace dsa::cuda::resident_experts {

void LaunchGivenExperts(const ExpertMaps& maps, const ExpertsParams& params, DataType y,
                        cudaStream_t stream) {
  y == DataType::kF32 ? LaunchExperts<float, Inner::kGiven>(maps, params, stream)
                      : LaunchExperts<__nv_bfloat16, Inner::kGiven>(maps, params, stream);
}

int GivenExpertsBlocks(DataType y) {
  return y == DataType::kF32 ? BlocksOf<float, Inner::kGiven>()
                             : BlocksOf<__nv_bfloat16, Inner::kGiven>();
}

}  // namespace dsa::cuda::resident_experts
