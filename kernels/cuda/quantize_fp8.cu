// QuantizeFp8: one warp per row and block of 128 columns, four values a lane.
//
// Reads b T K bytes, writes T K + 4 T K / 128.  Memory-bound.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/kv_layout.h"

namespace dsa {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * cuda::kWarpSize;
constexpr int kValuesPerLane = kValuesPerScale / cuda::kWarpSize;

template <typename T>
__global__ __launch_bounds__(kThreads) void QuantizeFp8Kernel(
    const __grid_constant__ QuantizeFp8Params p, std::int64_t blocks) {
  const std::int64_t task = blockIdx.x * std::int64_t{kWarps} + threadIdx.x / cuda::kWarpSize;
  if (task >= p.x.rows * blocks) {
    return;
  }
  const std::int64_t row = task / blocks;
  const std::int64_t block = task % blocks;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride;

  float values[kValuesPerLane];
  float amax = 0.0F;
#pragma unroll
  for (int i = 0; i < kValuesPerLane; ++i) {
    const std::int64_t column = block * kValuesPerScale + i * cuda::kWarpSize + lane;
    values[i] = column < p.x.cols ? cuda::ToFloat(x[column]) : 0.0F;
    amax = fmaxf(amax, fabsf(values[i]));
  }
  const float scale = cuda::BlockScale(cuda::WarpMax(amax), p.scale_format);
  if (lane == 0) {
    p.scales.Row(row)[block] = scale;
  }
#pragma unroll
  for (int i = 0; i < kValuesPerLane; ++i) {
    const std::int64_t column = block * kValuesPerScale + i * cuda::kWarpSize + lane;
    if (column < p.x.cols) {
      p.values.Row(row)[column].bits = cuda::ToFp8(values[i] / scale);
    }
  }
}

}  // namespace

void CudaBackend::QuantizeFp8(const QuantizeFp8Params& params) {
  const QuantizeFp8Extents extents = Validate(params);
  const std::int64_t tasks = extents.tokens * extents.blocks;
  if (tasks == 0) {
    return;
  }
  cuda::DispatchFloat(params.x.type, [&]<typename T>(T) {
    QuantizeFp8Kernel<T>
        <<<static_cast<unsigned>((tasks + kWarps - 1) / kWarps), kThreads, 0, state_->stream>>>(
            params, extents.blocks);
  });
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa
