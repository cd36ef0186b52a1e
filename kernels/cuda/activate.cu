// SwiGLU and its fp8 copy in a launch of their own: half a warp a row and block of 128 columns.
#include "kernels/cuda/activate.cuh"
#include "kernels/cuda/dependent_launch.cuh"

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr int kTasks = kThreads / cuda::kQuantizeLanes;

template <typename T>
__global__ __launch_bounds__(kThreads) void ActivateKernel(
    const __grid_constant__ cuda::ActivateParams p) {
  cuda::StartAfterPredecessors();
  cuda::ActivateBlock<T>(p, blockIdx.x * std::int64_t{kTasks} + threadIdx.x / cuda::kQuantizeLanes);
}

}  // namespace

bool cuda::ActivateTakes(const ActivateParams& params) {
  return params.gate.rows > 0 && params.gate.cols % kQuantizeWidth == 0;
}

void cuda::Activate(const ActivateParams& params, cudaStream_t stream) {
  DispatchFloat(params.gate.type, [&]<typename T>(T) {
    LaunchDependent(ActivateKernel<T>,
                    {.grid = static_cast<unsigned>((params.tasks() + kTasks - 1) / kTasks),
                     .threads = kThreads},
                    stream, params);
  });
}

}  // namespace dsa
