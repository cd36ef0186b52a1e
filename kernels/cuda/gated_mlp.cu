// GatedMlp: gate and up in one launch, SwiGLU and the fp8 copy of what down reads in the next.
#include "kernels/cuda/activate.cuh"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/fused/gated_mlp.h"
#include "kernels/fused/project.h"

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

void CudaBackend::GatedMlp(const GatedMlpParams& params) {
  const AnyMatrix& gate = params.inner.x;
  if (!params.down.quantized() || gate.cols % cuda::kQuantizeWidth != 0 || gate.rows == 0) {
    Backend::GatedMlp(params);
    return;
  }
  Project({.x = params.x,
           .projections = {{{.weight = params.gate, .y = gate},
                            {.weight = params.up, .y = params.up_output}}}});
  const cuda::ActivateParams activate{.gate = gate, .up = params.up_output, .y = params.inner.fp8};
  cuda::DispatchFloat(gate.type, [&]<typename T>(T) {
    cuda::LaunchDependent(ActivateKernel<T>,
                          {.grid = static_cast<unsigned>((activate.tasks() + kTasks - 1) / kTasks),
                           .threads = kThreads},
                          state_->stream, activate);
  });
  Multiply(*this, params.inner, params.down, params.y);
}

}  // namespace dsa
