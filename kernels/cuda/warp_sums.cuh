// Sums over a warp and over the warps of a block, with what lies before a thread: how threads find
// their places in a list.
#pragma once

#include "kernels/cuda/element.cuh"

namespace dsa::cuda {

__device__ inline unsigned InclusiveWarpSum(unsigned value, int lane) {
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const unsigned lower = __shfl_up_sync(kAllLanes, value, offset);
    value += lane >= offset ? lower : 0U;
  }
  return value;
}

// Sums of one value a warp, over the warps before the caller's and over all.  Every thread calls
// it, two calls in a row with different arrays: then one barrier a call is enough.
struct WarpSums {
  unsigned before;
  unsigned all;
};
template <int kWarps>
__device__ WarpSums SumOverWarps(unsigned warp_value, unsigned* sums) {
  static_assert(kWarps <= kWarpSize, "a warp adds up one value of every warp");
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  if (lane == 0) {
    sums[warp] = warp_value;
  }
  __syncthreads();
  const unsigned inclusive = InclusiveWarpSum(lane < kWarps ? sums[lane] : 0U, lane);
  return {.before = __shfl_sync(kAllLanes, inclusive, warp) - warp_value,
          .all = __shfl_sync(kAllLanes, inclusive, kWarps - 1)};
}

}  // namespace dsa::cuda
