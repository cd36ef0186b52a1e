// StoreLatent: one block of 128 threads per token (store_latent.cuh).  Reads 576 b bytes per token
// and writes one record; memory-bound and tiny.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/store_latent.cuh"

namespace dsa {
namespace {

constexpr int kThreads = cuda::kLatentThreads;

template <typename T>
__global__ __launch_bounds__(kThreads) void StoreLatentKernel(
    const __grid_constant__ StoreLatentParams p) {
  cuda::StartAfterPredecessors();
  cuda::LatentRow<T, kThreads>(p, blockIdx.x).Run();
}

}  // namespace

void CudaBackend::StoreLatent(const StoreLatentParams& params) {
  const auto [tokens] = Validate(params);
  if (tokens == 0) {
    return;
  }
  cuda::DispatchFloat(params.kv.type, [&, tokens = tokens]<typename T>(T) {
    cuda::LaunchDependent(StoreLatentKernel<T>,
                          {.grid = static_cast<unsigned>(tokens), .threads = kThreads},
                          state_->stream, params);
  });
}

}  // namespace dsa
