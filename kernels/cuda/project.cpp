// Project: the fp8 products of a decode step in one launch, with a narrow bf16 one beside them;
// others one by one.  Where queries are absorbed as well, in the launch of their products.
#include "kernels/fused/project.h"

#include "kernels/cuda/attend_latent.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/narrow_product.h"
#include "kernels/cuda/products_and_absorb.h"
#include "kernels/cuda/small_product.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>

namespace dsa {
namespace {

// Two projections, of attention's queries and the indexer's, with the absorption of the former.
std::optional<cuda::ProductsAndAbsorbParams> ProductsAndAbsorbOf(const ProjectParams& params) {
  const auto& projections = params.projections;
  const bool has_two =
      projections[0].weight.quantized() && projections[0].weight.weight.data != nullptr &&
      projections[1].weight.quantized() && projections[1].weight.weight.data != nullptr &&
      std::all_of(projections.begin() + 2, projections.end(), [](const Projection& projection) {
        return projection.weight.weight.data == nullptr;
      });
  if (!params.absorbed || !has_two) {
    return std::nullopt;
  }
  const QueriesToAbsorb& queries = params.absorbed->queries;
  return cuda::ProductsAndAbsorbParams{
      .query = ScaledProduct(params.x, projections[0].weight, projections[0].y),
      .index_query = ScaledProduct(params.x, projections[1].weight, projections[1].y),
      .rope = RopeOf(queries, params.absorbed->positions),
      .absorb = AbsorbOf(queries)};
}

}  // namespace

// Fewer rows are absorbed elsewhere, by instructions whose sums need not have the same bits.
bool CudaBackend::AbsorbsInProject(const ProjectParams& params) const {
  const auto products = ProductsAndAbsorbOf(params);
  return !state_->batch_invariant && products && cuda::IsBetterAtProductsAndAbsorb(*products);
}

void CudaBackend::Project(const ProjectParams& params) {
  if (params.absorbed) {
    const auto products = ProductsAndAbsorbOf(params);
    if (products && cuda::TakesProductsAndAbsorb(*products)) {
      (void)Validate(products->query);
      (void)Validate(products->index_query);
      (void)Validate(products->rope);
      (void)Validate(products->absorb);
      cuda::ProductsAndAbsorb(*products, stream());
      return;
    }
  }
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
  if (params.absorbed) {
    const QueriesToAbsorb& queries = params.absorbed->queries;
    RotateAndAbsorb(
        {.rope = RopeOf(queries, params.absorbed->positions), .absorb = AbsorbOf(queries)});
  }
}

}  // namespace dsa
