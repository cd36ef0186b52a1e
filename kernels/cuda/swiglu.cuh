// The activation of one value, shared by SwiGlu and RoutedExperts.  kernels/ops/swiglu.h.
#pragma once

namespace dsa::cuda {

__device__ inline float SwiGluOf(float gate, float up) {
  return gate / (1.0F + expf(-gate)) * up;
}

}  // namespace dsa::cuda
