// Routed experts that have many rows each: a prompt's.
#pragma once

#include "kernels/cuda/resident_expert_work.cuh"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda::resident_experts {

inline constexpr int kManyTilePairs = 128;  // that the pairs are to be sorted into

// Experts of `params` without a shared one that is computed beside them; y is bfloat16 or float32.
// `maps` are those of the weights; the bytes of contributions also hold rows of x in the order of
// pairs.  A pair's bits depend on its row, its expert and the order of K alone.  Any stream,
// capture included.
void LaunchExpertTiles(const ExpertMaps& maps, const ExpertsParams& params, DataType y,
                       cudaStream_t stream);

}  // namespace dsa::cuda::resident_experts
