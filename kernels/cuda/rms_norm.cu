// RmsNorm: one block of 256 threads per token row.
//
//   row t     |  0  |  1  | ... | 255 | 256 | ...      D values
//   thread       0     1    ...   255    0    ...
//
// h is kept in shared memory between the two passes (4 D bytes), so x is read once: with b bytes an
// element 2 b T D move, twice that with a residual.  Memory-bound.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kSharedBytesMax = 200 * 1024;  // of 227 a block may have on sm_90

template <typename T>
__global__ __launch_bounds__(kThreads) void RmsNormKernel(const __grid_constant__ RmsNormParams p) {
  extern __shared__ float h[];  // [D]
  const std::int64_t token = blockIdx.x;
  const T* x = static_cast<const T*>(p.x.data) + token * p.x.row_stride;
  T* y = static_cast<T*>(p.y.data) + token * p.y.row_stride;
  T* residual = static_cast<T*>(p.residual.data) + token * p.residual.row_stride;
  const bool has_residual = p.residual.data != nullptr;

  float sum_of_squares = 0.0F;
  for (std::int64_t d = threadIdx.x; d < p.x.cols; d += kThreads) {
    float value = cuda::ToFloat(x[d]);
    if (has_residual) {
      value += cuda::ToFloat(residual[d]);
      residual[d] = cuda::FromFloat<T>(value);
    }
    h[d] = value;  // read again by this thread only
    sum_of_squares += value * value;
  }
  const float mean = cuda::BlockSum<kThreads>(sum_of_squares) / static_cast<float>(p.x.cols);
  const float scale = 1.0F / sqrtf(mean + p.eps);
  for (std::int64_t d = threadIdx.x; d < p.x.cols; d += kThreads) {
    y[d] = cuda::FromFloat<T>(h[d] * scale * p.weight.data[d]);
  }
}

}  // namespace

void CudaBackend::RmsNorm(const RmsNormParams& params) {
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
    RmsNormKernel<T>
        <<<static_cast<unsigned>(tokens), kThreads, shared_bytes, state_->stream>>>(params);
  });
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa
