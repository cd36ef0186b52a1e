// Fp8 block-scaled products of 33 to 64 rows (small_product.cuh): tiles of 128 weight rows, or of
// 64 or 96 with the rows of x on the M side.
#include "kernels/cuda/small_product_launch.cuh"

namespace dsa::cuda::small_product {

void LaunchManyRows(std::span<const BlockScaledLinearParams> products, const LinearParams* narrow,
                    cudaStream_t stream) {
  if (narrow == nullptr && IsWide(products)) {
    LaunchProducts<Plan<kTokensMax, 2>>(products, nullptr, stream);
  } else if (narrow == nullptr && FitsInThreeSlabs(products)) {
    LaunchProducts<Plan<kTokensMax, 3, true, 2, kThreeSlabsRows / 3>>(products, nullptr, stream);
  } else {
    LaunchProducts<Plan<kTokensMax, 1, true>>(products, narrow, stream);
  }
}

}  // namespace dsa::cuda::small_product
