// Fp8 block-scaled products of 1 to 64 rows in a launch of their own (small_product.cuh).
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/small_product.cuh"

namespace dsa::cuda {
namespace {

using small_product::kTokensMax;

template <int kTokens>
__global__ void __launch_bounds__(small_product::Plan<kTokens>::kThreads, 2)
    SmallProductKernel(const __grid_constant__ small_product::Maps maps,
                       const __grid_constant__ small_product::SmallProductParams p) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  const int block = static_cast<int>(blockIdx.x);
  if (block >= p.narrow_block) {
    ptx::AllowSuccessor();
    using P = small_product::Plan<kTokens>;
    constexpr int kTokenParts = kTokens / P::kNarrowTokens;
    const int cluster = (block - p.narrow_block) / p.split;
    narrow_product::Run<P::kNarrowTokens / 8, P::kWarps>(
        p.narrow,
        {.output = cluster / kTokenParts * narrow_product::kOutputs,
         .token = cluster % kTokenParts * P::kNarrowTokens},
        *reinterpret_cast<typename P::Narrow*>(shared));
    return;
  }
  small_product::Run<kTokens, 1, 0>(maps, p, shared);
}

template <int kTokens>
void Launch(std::span<const BlockScaledLinearParams> products, const LinearParams* narrow,
            cudaStream_t stream) {
  const small_product::Launch launch = small_product::MakeLaunch<kTokens, 1>(products, narrow, {});
  const auto kernel = SmallProductKernel<kTokens>;
  static PerDevice attribute;
  attribute.Once([&] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kBlockSharedBytesMax);
  });
  LaunchDependent(kernel,
                  {.grid = static_cast<unsigned>(launch.blocks),
                   .threads = small_product::Plan<kTokens>::kThreads,
                   .shared_bytes = launch.shared_bytes,
                   .cluster = static_cast<unsigned>(launch.params.split)},
                  stream, launch.maps, launch.params);
}

bool IsAligned(const void* data, std::int64_t stride_bytes, std::int64_t alignment) {
  return reinterpret_cast<std::uintptr_t>(data) % alignment == 0 && stride_bytes % alignment == 0;
}

}  // namespace

bool SmallProductTakes(const BlockScaledLinearParams& params) {
  constexpr std::int64_t kAlignment = 16;
  return params.x.rows <= kTokensMax && params.x.cols % kAlignment == 0 &&
         params.weight.rows % small_product::kOutputsPerWarp == 0 &&
         IsAligned(params.x.data, params.x.row_stride, kAlignment) &&
         IsAligned(params.weight.data, params.weight.row_stride, kAlignment) &&
         IsAligned(params.y.data, params.y.row_stride * SizeOf(params.y.type),
                   2 * SizeOf(params.y.type));
}

void SmallProducts(std::span<const BlockScaledLinearParams> products, const LinearParams* narrow,
                   cudaStream_t stream) {
  DSA_CHECK(!products.empty() && products.size() <= kSmallProductsMax,
            "SmallProducts: {} products, at most {}", products.size(), kSmallProductsMax);
  const std::int64_t tokens = products.front().x.rows;
  for (const BlockScaledLinearParams& product : products) {
    DSA_CHECK(product.x.data == products.front().x.data && product.x.rows == tokens,
              "SmallProducts: products of {} and {} rows, not of one x", tokens, product.x.rows);
  }
  DSA_CHECK(narrow == nullptr || narrow->x.rows == tokens,
            "SmallProducts: a narrow product of {} rows beside {}", narrow->x.rows, tokens);
  if (tokens <= 8) {
    Launch<8>(products, narrow, stream);
  } else if (tokens <= 16) {
    Launch<16>(products, narrow, stream);
  } else if (tokens <= 32) {
    Launch<32>(products, narrow, stream);
  } else if (narrow == nullptr && small_product::IsWide(products)) {
    small_product::LaunchWide(products, stream);
  } else {
    Launch<64>(products, narrow, stream);
  }
}

}  // namespace dsa::cuda
