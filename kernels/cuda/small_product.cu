// Fp8 block-scaled products of 1 to 64 rows in a launch of their own (small_product.cuh).
#include "kernels/cuda/small_product_launch.cuh"

namespace dsa::cuda {
namespace {

using small_product::kTokensMax;
using small_product::LaunchProducts;
using small_product::Plan;

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
  if (narrow == nullptr && small_product::SharesByThree(products)) {
    small_product::LaunchShort(products, stream);
  } else if (tokens <= 8) {
    LaunchProducts<Plan<8>>(products, narrow, stream);
  } else if (tokens <= 16) {
    LaunchProducts<Plan<16>>(products, narrow, stream);
  } else if (tokens <= 32) {
    LaunchProducts<Plan<32>>(products, narrow, stream);
  } else {
    small_product::LaunchManyRows(products, narrow, stream);
  }
}

}  // namespace dsa::cuda
