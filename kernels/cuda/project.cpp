// Project: the fp8 products of a decode step in one launch, with a narrow bf16 one beside them;
// others one by one.
#include "kernels/fused/project.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/narrow_product.h"
#include "kernels/cuda/small_product.h"

#include <array>
#include <cstddef>
#include <optional>

namespace dsa {

void CudaBackend::Project(const ProjectParams& params) {
  static_assert(kProjectionsMax <= cuda::kSmallProductsMax);
  std::array<BlockScaledLinearParams, kProjectionsMax> small{};
  std::size_t count = 0;
  std::optional<LinearParams> narrow;
  std::array<const Projection*, kProjectionsMax> others{};
  std::size_t other_count = 0;
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
    } else if (!narrow) {
      const LinearParams product = {
          .x = params.x.x, .weight = projection.weight.weight, .y = projection.y};
      const LinearExtents extents = Validate(product);
      if (extents.tokens > 0 && cuda::NarrowProductTakes(product)) {
        narrow = product;
        continue;
      }
    }
    others[other_count++] = &projection;
  }
  for (std::size_t i = 0; i < other_count; ++i) {
    Multiply(*this, params.x, others[i]->weight, others[i]->y);
  }
  if (count > 0) {
    cuda::SmallProducts({small.data(), count}, narrow ? &*narrow : nullptr, stream());
  } else if (narrow) {
    cuda::NarrowProduct(*narrow, stream());
  }
}

}  // namespace dsa
