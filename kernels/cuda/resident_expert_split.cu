// The resident launch where gate and up of the shared expert are computed in parts of K: apart,
// since the others' warps have no registers to spare.
#include "kernels/cuda/resident_experts.cuh"

namespace dsa::cuda::resident_experts {

void LaunchSplitExperts(const ExpertMaps& maps, const ExpertsParams& params, DataType y,
                        cudaStream_t stream) {
  y == DataType::kF32 ? LaunchExperts<float, Inner::kParts>(maps, params, stream)
                      : LaunchExperts<__nv_bfloat16, Inner::kParts>(maps, params, stream);
}

}  // namespace dsa::cuda::resident_experts
