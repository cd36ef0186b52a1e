// FillRandom: one thread per value, over a grid that goes round; bound by the integer hash.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/fill_random.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kBlocksMax = 32 * cuda::kMultiprocessors;

__device__ void Store(void* data, DataType type, std::int64_t index, float value) {
  switch (type) {
    case DataType::kF32: static_cast<float*>(data)[index] = value; return;
    case DataType::kBf16:
      static_cast<__nv_bfloat16*>(data)[index] = cuda::FromFloat<__nv_bfloat16>(value);
      return;
    case DataType::kFp8E4m3: static_cast<std::uint8_t*>(data)[index] = cuda::ToFp8(value); return;
    case DataType::kF64: return;  // of no weight
  }
}

__global__ __launch_bounds__(kThreads) void FillRandomKernel(
    const __grid_constant__ FillRandomParams p, float factor) {
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < p.size;
       i += gridDim.x * std::int64_t{kThreads}) {
    const auto sum = static_cast<float>(RandomSum(p.seed, p.place.Of(i)));
    Store(p.data, p.type, i, fmaf(sum, factor, p.mean));
  }
}

}  // namespace

void cuda::FillRandom(const FillRandomParams& params, cudaStream_t stream) {
  const float factor = Validate(params);
  if (params.size == 0) {
    return;
  }
  const std::int64_t blocks = std::min((params.size + kThreads - 1) / kThreads, kBlocksMax);
  FillRandomKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(params, factor);
  DSA_CUDA_CHECK(cudaGetLastError());
  // Products read weights before the kernels ahead of them have ended: dependent_launch.cuh.
  DSA_CUDA_CHECK(cudaStreamSynchronize(stream));
}

}  // namespace dsa
