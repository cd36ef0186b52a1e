// StoreIndexerKey: one warp per token, eight a block, all steps in registers.  Reads 128 b bytes a
// token, writes 132; tiny.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/store_indexer_key.cuh"

namespace dsa {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * cuda::kWarpSize;

template <typename T>
__global__ __launch_bounds__(kThreads) void StoreIndexerKeyKernel(
    const __grid_constant__ StoreIndexerKeyParams p) {
  cuda::StartAfterPredecessors();
  const std::int64_t row = blockIdx.x * std::int64_t{kWarps} + threadIdx.x / cuda::kWarpSize;
  if (row >= p.k.rows) {
    return;
  }
  cuda::StoreIndexerKeyRow<T>(p, row);
}

}  // namespace

void cuda::StoreIndexerKey(const StoreIndexerKeyParams& params, cudaStream_t stream) {
  const auto [tokens] = Validate(params);
  if (tokens == 0) {
    return;
  }
  cuda::DispatchFloat(params.k.type, [&, tokens = tokens]<typename T>(T) {
    cuda::LaunchDependent(
        StoreIndexerKeyKernel<T>,
        {.grid = static_cast<unsigned>((tokens + kWarps - 1) / kWarps), .threads = kThreads},
        stream, params);
  });
}

}  // namespace dsa
