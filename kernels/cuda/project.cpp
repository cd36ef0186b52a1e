// Project: the fp8 products of a decode step in one launch, others one by one.
#include "kernels/fused/project.h"

#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/small_product.h"

namespace dsa {

void CudaBackend::Project(const ProjectParams& params) {
  static_assert(kProjectionsMax <= cuda::kSmallProductsMax);
  std::array<BlockScaledLinearParams, kProjectionsMax> small{};
  std::size_t count = 0;
  for (const Projection& projection : params.projections) {
    if (projection.weight.weight.data == nullptr) {
      continue;
    }
    if (projection.weight.quantized()) {
      const BlockScaledLinearParams product =
          ScaledProduct(params.x, projection.weight, projection.y);
      const LinearExtents extents = Validate(product);
      if (extents.tokens > 0 && extents.outputs > 0 && cuda::SmallProductTakes(product)) {
        small[count++] = product;
        continue;
      }
    }
    Multiply(*this, params.x, projection.weight, projection.y);
  }
  if (count > 0) {
    cuda::SmallProducts({small.data(), count}, state_->stream);
  }
}

}  // namespace dsa
