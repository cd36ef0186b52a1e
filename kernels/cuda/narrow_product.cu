// NarrowProduct: a cluster of 8 blocks per 16 outputs (narrow_product.cuh).
#include "kernels/cuda/narrow_product.cuh"
#include "kernels/cuda/narrow_product.h"

namespace dsa::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kCluster = 8;
constexpr std::int64_t kTokensMax = 64;
constexpr std::int64_t kOutputsMax = 256;

template <int kTiles>
__global__ __launch_bounds__(kWarps* kWarpSize) void NarrowProductKernel(
    const __grid_constant__ LinearParams p) {
  __shared__ narrow_product::Shared<kTiles, kWarps> shared;
  ptx::AllowSuccessor();
  narrow_product::Run<kTiles, kWarps>(
      p, {.output = static_cast<int>(blockIdx.x) / kCluster * narrow_product::kOutputs, .token = 0},
      shared);
}

template <int kTiles>
void Launch(const LinearParams& params, cudaStream_t stream) {
  LaunchDependent(
      NarrowProductKernel<kTiles>,
      {.grid = static_cast<unsigned>(params.weight.rows / narrow_product::kOutputs * kCluster),
       .threads = kWarps * kWarpSize,
       .cluster = kCluster},
      stream, params);
}

}  // namespace

bool NarrowProductTakes(const LinearParams& params) {
  return params.x.type == DataType::kBf16 && params.weight.type == DataType::kBf16 &&
         params.x.rows <= kTokensMax && params.weight.rows <= kOutputsMax &&
         params.weight.rows % narrow_product::kOutputs == 0 &&
         params.x.cols % narrow_product::kChunk == 0 && HasAlignedRows(params.x) &&
         HasAlignedRows(params.weight);
}

void NarrowProduct(const LinearParams& params, cudaStream_t stream) {
  params.x.rows <= 8 ? Launch<1>(params, stream) : Launch<8>(params, stream);
}

}  // namespace dsa::cuda
