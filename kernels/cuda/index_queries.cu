// PrepareIndexQueries: a head has 32 lanes where rows are few, which is soonest done, and 4 where
// they are many, which is least work: shuffles are what bounds it.
//
// Reads 256 bytes a head and writes 132, and clears 8.3 KB of work memory a row.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/index_queries.cuh"
#include "kernels/cuda/launch.h"

namespace dsa::cuda {
namespace {

using index_queries::KernelParams;

template <typename T, int kLanes>
__global__ __launch_bounds__(index_queries::kThreads) void PrepareKernel(
    const __grid_constant__ KernelParams p) {
  ptx::WaitForPredecessors();
  ptx::AllowSuccessor();  // not earlier: IndexScores relies on it
  index_queries::PrepareHeads<T, kLanes>(
      p, blockIdx.x * std::int64_t{index_queries::kWarps} + threadIdx.x / kWarpSize);
}

template <typename T, int kLanes>
void Launch(const KernelParams& p, cudaStream_t stream) {
  LaunchDependent(
      PrepareKernel<T, kLanes>,
      {.grid = index_queries::BlocksOf(p.call, kLanes), .threads = index_queries::kThreads}, stream,
      p);
}

}  // namespace

void PrepareIndexQueries(const IndexQueriesParams& params, cudaStream_t stream) {
  const KernelParams p = index_queries::ParamsOf(params);
  const bool has_many = params.q.rows > 2 * kMultiprocessors;
  DispatchFloat(params.q.type, [&]<typename T>(T) {
    if (has_many) {
      Launch<T, 4>(p, stream);
    } else {
      Launch<T, 32>(p, stream);
    }
  });
}

}  // namespace dsa::cuda
