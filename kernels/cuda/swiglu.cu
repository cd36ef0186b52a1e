// SwiGlu: a thread per eight values of a row.  Reads 2 b T I bytes and writes b T I; memory-bound.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/swiglu.cuh"
#include "kernels/ops/swiglu.h"

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 8;

template <typename T>
__global__ __launch_bounds__(kThreads) void SwiGluKernel(const __grid_constant__ SwiGluParams p,
                                                         std::int64_t packs) {
  cuda::StartAfterPredecessors();
  const std::int64_t task = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (task >= p.gate.rows * packs) {
    return;
  }
  const std::int64_t row = task / packs;
  const std::int64_t first = task % packs * kWidth;
  const T* gate = static_cast<const T*>(p.gate.data) + row * p.gate.row_stride + first;
  const T* up = static_cast<const T*>(p.up.data) + row * p.up.row_stride + first;
  T* y = static_cast<T*>(p.y.data) + row * p.y.row_stride + first;
  if (first + kWidth <= p.gate.cols) {
    const auto gates = cuda::LoadPack<kWidth>(gate);
    const auto ups = cuda::LoadPack<kWidth>(up);
    cuda::Pack<T, kWidth> activated;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      activated.values[i] = cuda::FromFloat<T>(
          cuda::SwiGluOf(cuda::ToFloat(gates.values[i]), cuda::ToFloat(ups.values[i])));
    }
    cuda::StorePack(y, activated);
    return;
  }
  for (std::int64_t i = 0; first + i < p.gate.cols; ++i) {
    y[i] = cuda::FromFloat<T>(cuda::SwiGluOf(cuda::ToFloat(gate[i]), cuda::ToFloat(up[i])));
  }
}

}  // namespace

void cuda::SwiGlu(const SwiGluParams& params, cudaStream_t stream) {
  const SwiGluExtents extents = Validate(params);
  const std::int64_t packs = (extents.width + kWidth - 1) / kWidth;
  const std::int64_t tasks = extents.tokens * packs;
  if (tasks == 0) {
    return;
  }
  cuda::DispatchFloat(params.gate.type, [&]<typename T>(T) {
    cuda::LaunchDependent(
        SwiGluKernel<T>,
        {.grid = static_cast<unsigned>((tasks + kThreads - 1) / kThreads), .threads = kThreads},
        stream, params, packs);
  });
}

}  // namespace dsa
