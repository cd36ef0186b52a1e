// QuantizeFp8: half a warp per row and block of 128 columns, eight values that lie together a lane.
//
// Reads b T K bytes, writes T K + 4 T K / 128.  Memory-bound.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/quantize_fp8.cuh"
#include "kernels/ops/quantize_fp8.h"

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = cuda::kQuantizeLanes;
constexpr int kWidth = cuda::kQuantizeWidth;
constexpr int kTasks = kThreads / kLanes;

// The lane's values of a block of columns, 0 beyond the last column.
template <typename T>
__device__ void LoadValues(const T* x, std::int64_t columns, float (&values)[kWidth]) {
  if (columns >= kWidth) {
    const auto pack = cuda::LoadPack<kWidth>(x);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      values[i] = cuda::ToFloat(pack.values[i]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    values[i] = i < columns ? cuda::ToFloat(x[i]) : 0.0F;
  }
}

template <typename T>
__global__ __launch_bounds__(kThreads) void QuantizeFp8Kernel(
    const __grid_constant__ QuantizeFp8Params p, std::int64_t blocks) {
  cuda::StartAfterPredecessors();
  const std::int64_t task = blockIdx.x * std::int64_t{kTasks} + threadIdx.x / kLanes;
  const bool has_task = task < p.x.rows * blocks;  // all lanes stay, to exchange maxima
  const std::int64_t row = has_task ? task / blocks : 0;
  const std::int64_t block = has_task ? task % blocks : 0;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t first = block * kValuesPerScale + lane * kWidth;
  const std::int64_t columns = p.x.cols - first;  // from the lane's first on; may be negative

  float values[kWidth];
  LoadValues(static_cast<const T*>(p.x.data) + row * p.x.row_stride + first, columns, values);
  float scale = 0.0F;
  const auto quantized = cuda::QuantizeBlock(values, p.scale_format, scale);
  if (!has_task) {
    return;
  }
  if (lane == 0) {
    p.scales.Row(row)[block] = scale;
  }
  Fp8E4m3* to = p.values.Row(row) + first;
  if (columns >= kWidth) {
    cuda::StorePack(to, quantized);
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (i < columns) {
      to[i] = quantized.values[i];
    }
  }
}

}  // namespace

void cuda::QuantizeFp8(const QuantizeFp8Params& params, cudaStream_t stream) {
  const QuantizeFp8Extents extents = Validate(params);
  const std::int64_t tasks = extents.tokens * extents.blocks;
  if (tasks == 0) {
    return;
  }
  cuda::DispatchFloat(params.x.type, [&]<typename T>(T) {
    cuda::LaunchDependent(
        QuantizeFp8Kernel<T>,
        {.grid = static_cast<unsigned>((tasks + kTasks - 1) / kTasks), .threads = kThreads}, stream,
        params, extents.blocks);
  });
}

}  // namespace dsa
