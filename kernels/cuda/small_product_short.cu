// Fp8 block-scaled products of 1 to 16 rows where K is short and three blocks share a
// multiprocessor (small_product.cuh).
#include "kernels/cuda/small_product_launch.cuh"

namespace dsa::cuda::small_product {

void LaunchShort(std::span<const BlockScaledLinearParams> products, cudaStream_t stream) {
  constexpr int kResidents = 3;
  if (products.front().x.rows <= 8) {
    LaunchProducts<Plan<8, 1, false, kResidents>>(products, nullptr, stream);
  } else {
    LaunchProducts<Plan<kShortTokens, 1, false, kResidents>>(products, nullptr, stream);
  }
}

}  // namespace dsa::cuda::small_product
