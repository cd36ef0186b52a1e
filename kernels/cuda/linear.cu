// Linear and BlockScaledLinear of what no faster product takes (linear.cpp): one warp per output
// element.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/linear.h"

#include <string_view>

namespace dsa {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * cuda::kWarpSize;
constexpr std::int64_t kPlainWeightsMax = std::int64_t{1} << 21;  // N * K of the plain kernels

template <typename X, typename W, typename Y>
__global__ __launch_bounds__(kThreads) void LinearKernel(const __grid_constant__ LinearParams p) {
  cuda::StartAfterPredecessors();
  const std::int64_t row = blockIdx.y;
  const std::int64_t output = blockIdx.x * std::int64_t{kWarps} + threadIdx.x / cuda::kWarpSize;
  if (output >= p.y.cols) {
    return;
  }
  const X* x = static_cast<const X*>(p.x.data) + row * p.x.row_stride;
  const W* weight = static_cast<const W*>(p.weight.data) + output * p.weight.row_stride;
  float sum = 0.0F;
  for (std::int64_t k = threadIdx.x % cuda::kWarpSize; k < p.x.cols; k += cuda::kWarpSize) {
    sum = fmaf(cuda::ToFloat(x[k]), cuda::ToFloat(weight[k]), sum);
  }
  sum = cuda::WarpSum(sum);
  if (threadIdx.x % cuda::kWarpSize == 0) {
    static_cast<Y*>(p.y.data)[row * p.y.row_stride + output] = cuda::FromFloat<Y>(sum);
  }
}

template <typename Y>
__global__ __launch_bounds__(kThreads) void BlockScaledLinearKernel(
    const __grid_constant__ BlockScaledLinearParams p) {
  cuda::StartAfterPredecessors();
  const std::int64_t row = blockIdx.y;
  const std::int64_t output = blockIdx.x * std::int64_t{kWarps} + threadIdx.x / cuda::kWarpSize;
  if (output >= p.y.cols) {
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const Fp8E4m3* x = p.x.Row(row);
  const Fp8E4m3* weight = p.weight.Row(output);
  const float* weight_scales = p.weight_scales.Row(output / kValuesPerScale);
  float sum = 0.0F;
  for (std::int64_t block = 0; block * kValuesPerScale < p.x.cols; ++block) {
    float products = 0.0F;
    for (std::int64_t k = block * kValuesPerScale + lane;
         k < min(p.x.cols, (block + 1) * kValuesPerScale); k += cuda::kWarpSize) {
      products = fmaf(cuda::Fp8ToFloat(x[k].bits), cuda::Fp8ToFloat(weight[k].bits), products);
    }
    sum = fmaf(cuda::WarpSum(products), p.x_scales.Row(row)[block] * weight_scales[block], sum);
  }
  if (lane == 0) {
    static_cast<Y*>(p.y.data)[row * p.y.row_stride + output] = cuda::FromFloat<Y>(sum);
  }
}

void CheckPlain(std::string_view op, const LinearExtents& extents) {
  DSA_CHECK(extents.outputs * extents.inputs <= kPlainWeightsMax,
            "{}: no fast product for N={} K={}: a weight that cuBLASLt does not take may have {} "
            "elements",
            op, extents.outputs, extents.inputs, kPlainWeightsMax);
}

dim3 GridOf(const LinearExtents& extents) {
  return {static_cast<unsigned>((extents.outputs + kWarps - 1) / kWarps),
          static_cast<unsigned>(extents.tokens)};
}

}  // namespace

void cuda::PlainLinear(const LinearParams& params, cudaStream_t stream) {
  const LinearExtents extents = Validate(params);
  CheckPlain("Linear", extents);
  DispatchFloat(params.x.type, [&]<typename X>(X) {
    DispatchFloat(params.weight.type, [&]<typename W>(W) {
      DispatchFloat(params.y.type, [&]<typename Y>(Y) {
        LaunchDependent(LinearKernel<X, W, Y>, {.grid = GridOf(extents), .threads = kThreads},
                        stream, params);
      });
    });
  });
}

void cuda::PlainBlockScaledLinear(const BlockScaledLinearParams& params, cudaStream_t stream) {
  const LinearExtents extents = Validate(params);
  CheckPlain("BlockScaledLinear", extents);
  DispatchFloat(params.y.type, [&]<typename Y>(Y) {
    LaunchDependent(BlockScaledLinearKernel<Y>, {.grid = GridOf(extents), .threads = kThreads},
                    stream, params);
  });
}

}  // namespace dsa
