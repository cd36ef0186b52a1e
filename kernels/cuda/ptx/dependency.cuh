// The order of a launch and the ones before it on its stream, by its names in PTX.  For kernels
// launched as kernels/cuda/dependent_launch.cuh says; in others both do nothing.
#pragma once

namespace dsa::cuda::ptx {

// Returns when all launches before this one have ended and what they wrote is visible.
__device__ inline void WaitForPredecessors() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// The next launch may start once each block of this one has called it or ended.
__device__ inline void AllowSuccessor() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace dsa::cuda::ptx
