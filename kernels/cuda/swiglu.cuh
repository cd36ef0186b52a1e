// The activation of one value, shared by SwiGlu and RoutedExperts.  kernels/ops/swiglu.h.
#pragma once

namespace dsa::cuda {

// gate / (1 + exp(-gate)) * up, the quotient to 3 units in the last place.  An exact division has a
// call on its rare way, so that a thread's values would wait for one another, 200 cycles each; this
// one is good for divisors from 1 to 2, which is all that exp(-|gate|) gives.
__device__ inline float SwiGluOf(float gate, float up) {
  const float power = expf(-fabsf(gate));
  return __fdividef(gate < 0.0F ? gate * power : gate, 1.0F + power) * up;
}

}  // namespace dsa::cuda
