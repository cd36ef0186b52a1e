// StoreLatent: one block of 128 threads per token (store_latent.cuh).  Reads 576 b bytes per token
// and writes one record; memory-bound and tiny.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/ops.h"
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

void cuda::StoreLatent(const StoreLatentParams& params, cudaStream_t stream) {
  const auto [tokens] = Validate(params);
  if (tokens == 0) {
    return;
  }
  cuda::DispatchFloat(params.kv.type, [&, tokens = tokens]<typename T>(T) {
    cuda::LaunchDependent(StoreLatentKernel<T>,
                          {.grid = static_cast<unsigned>(tokens), .threads = kThreads}, stream,
                          params);
  });
}

}  // namespace dsa
