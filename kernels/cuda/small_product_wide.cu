// Fp8 block-scaled products of 33 to 64 rows in tiles of 128 weight rows (small_product.cuh).
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/small_product.cuh"

namespace dsa::cuda::small_product {
namespace {

using Wide = Plan<kTokensMax, 2>;

__global__ void __launch_bounds__(Wide::kThreads, 1)
    WideProductKernel(const __grid_constant__ Maps maps,
                      const __grid_constant__ SmallProductParams p) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  Run<kTokensMax, 2, 0>(maps, p, shared);
}

}  // namespace

void LaunchWide(std::span<const BlockScaledLinearParams> products, cudaStream_t stream) {
  const Launch launch = MakeLaunch<kTokensMax, 2>(products, nullptr, {});
  static PerDevice attribute;
  attribute.Once([] {
    return cudaFuncSetAttribute(WideProductKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kBlockSharedBytesMax);
  });
  LaunchDependent(WideProductKernel,
                  {.grid = static_cast<unsigned>(launch.blocks),
                   .threads = Wide::kThreads,
                   .shared_bytes = launch.shared_bytes,
                   .cluster = static_cast<unsigned>(launch.params.split)},
                  stream, launch.maps, launch.params);
}

}  // namespace dsa::cuda::small_product
