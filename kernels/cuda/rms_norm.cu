// RmsNorm: one block of 512 threads per token row.
//
//   row t     | 0..7 | 8..15 | ...      D values
//   thread       0       1     ...      pack i of a thread is i * 512 packs further
//
// h is kept in shared memory between the two passes (4 D bytes), so x is read once: with b bytes an
// element 2 b T D move, twice that with a residual.  Memory-bound.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/rms_norm.h"

namespace dsa {
namespace {

constexpr int kThreads = 512;
constexpr int kWidth = 8;                             // D is a multiple of it
constexpr std::int64_t kSharedBytesMax = 200 * 1024;  // of 227 a block may have on sm_90

template <typename T>
__global__ __launch_bounds__(kThreads) void RmsNormKernel(const __grid_constant__ RmsNormParams p) {
  extern __shared__ __align__(16) float h[];  // [D]
  cuda::StartAfterPredecessors();
  const std::int64_t token = blockIdx.x;
  const T* x = static_cast<const T*>(p.x.data) + token * p.x.row_stride;
  T* y = static_cast<T*>(p.y.data) + token * p.y.row_stride;
  T* residual = static_cast<T*>(p.residual.data) + token * p.residual.row_stride;
  const bool has_residual = p.residual.data != nullptr;

  float sum_of_squares = 0.0F;
  for (std::int64_t d = threadIdx.x * kWidth; d < p.x.cols; d += kThreads * kWidth) {
    const auto packed = cuda::LoadPack<kWidth>(x + d);
    cuda::Pack<T, kWidth> added;
    if (has_residual) {
      added = cuda::LoadPack<kWidth>(residual + d);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      float value = cuda::ToFloat(packed.values[i]);
      if (has_residual) {
        value += cuda::ToFloat(added.values[i]);
        added.values[i] = cuda::FromFloat<T>(value);
      }
      h[d + i] = value;  // read again by this thread only
      sum_of_squares += value * value;
    }
    if (has_residual) {
      cuda::StorePack(residual + d, added);
    }
  }
  const float mean = cuda::BlockSum<kThreads>(sum_of_squares) / static_cast<float>(p.x.cols);
  const float scale = 1.0F / sqrtf(mean + p.eps);
  for (std::int64_t d = threadIdx.x * kWidth; d < p.x.cols; d += kThreads * kWidth) {
    const auto weight = cuda::LoadPack<kWidth>(p.weight.data + d);
    cuda::Pack<T, kWidth> normed;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      normed.values[i] = cuda::FromFloat<T>(h[d + i] * scale * weight.values[i]);
    }
    cuda::StorePack(y + d, normed);
  }
}

}  // namespace

void cuda::RmsNorm(const RmsNormParams& params, cudaStream_t stream) {
  const auto [tokens, hidden] = Validate(params);
  if (tokens == 0) {
    return;  // an empty grid is a launch error
  }
  const std::int64_t shared_bytes = hidden * 4;
  DSA_CHECK(shared_bytes <= kSharedBytesMax, "RmsNorm: D={} is too wide", hidden);
  cuda::DispatchFloat(params.x.type, [&, tokens = tokens]<typename T>(T) {
    DSA_CUDA_CHECK(cudaFuncSetAttribute(RmsNormKernel<T>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(kSharedBytesMax)));
    cuda::LaunchDependent(
        RmsNormKernel<T>,
        {.grid = static_cast<unsigned>(tokens), .threads = kThreads, .shared_bytes = shared_bytes},
        stream, params);
  });
}

}  // namespace dsa
