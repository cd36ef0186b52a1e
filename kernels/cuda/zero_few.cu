// Zeroes a few bytes, as a kernel that overlaps its neighbours: one block.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/ops.h"

namespace dsa {
namespace {

constexpr unsigned kZeroThreads = 256;

__global__ __launch_bounds__(kZeroThreads) void ZeroKernel(std::uint8_t* target, int bytes) {
  cuda::StartAfterPredecessors();
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += kZeroThreads) {
    target[i] = 0;
  }
}

}  // namespace

void cuda::ZeroFew(void* target, std::size_t bytes, cudaStream_t stream) {
  LaunchDependent(ZeroKernel, {.grid = 1, .threads = kZeroThreads}, stream,
                  static_cast<std::uint8_t*>(target), static_cast<int>(bytes));
}

}  // namespace dsa
