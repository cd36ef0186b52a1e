// Rope: one thread a pair.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rope.cuh"

namespace dsa {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ __launch_bounds__(kThreads) void RopeKernel(const __grid_constant__ RopeParams p) {
  cuda::StartAfterPredecessors();
  const std::int64_t pairs = p.x.cols / 2;
  const std::int64_t task = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (task >= p.x.rows * p.x.heads * pairs) {
    return;
  }
  const std::int64_t row = task / (p.x.heads * pairs);
  const std::int64_t head = task / pairs % p.x.heads;
  const int pair = static_cast<int>(task % pairs);
  T* x = static_cast<T*>(p.x.data) + row * p.x.row_stride + head * p.x.head_stride;
  const auto [first, second] = cuda::PairColumns(pair, static_cast<int>(p.x.cols), p.layout);
  float a = cuda::ToFloat(x[first]);
  float b = cuda::ToFloat(x[second]);
  cuda::Rotate(p.table, p.positions.data[row], pair, a, b);
  x[first] = cuda::FromFloat<T>(a);
  x[second] = cuda::FromFloat<T>(b);
}

}  // namespace

void cuda::Rope(const RopeParams& params, cudaStream_t stream) {
  const auto [tokens, heads, width] = Validate(params);
  const std::int64_t tasks = tokens * heads * (width / 2);
  if (tasks == 0) {
    return;
  }
  cuda::DispatchFloat(params.x.type, [&]<typename T>(T) {
    cuda::LaunchDependent(
        RopeKernel<T>,
        {.grid = static_cast<unsigned>((tasks + kThreads - 1) / kThreads), .threads = kThreads},
        stream, params);
  });
}

}  // namespace dsa
