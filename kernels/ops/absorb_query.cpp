#include "kernels/ops/absorb_query.h"

#include "common/check.h"
#include "common/shape.h"
#include "kernels/kv_layout.h"

namespace dsa {

AbsorbQueryExtents Validate(const AbsorbQueryParams& params) {
  ShapeBinder shapes("AbsorbQuery");
  const auto [tokens, heads, nope] = shapes.Match("q_nope", params.q_nope, "T", "H", "N");
  shapes.Match("w_uk", params.w_uk, "H", "N", "L");
  shapes.Match("q_latent", params.q_latent, "T", "H", "L");
  const std::int64_t latent = params.q_latent.cols;
  DSA_CHECK(params.q_latent.type == params.q_nope.type,
            "AbsorbQuery: q_latent has type {}, q_nope {}", static_cast<int>(params.q_latent.type),
            static_cast<int>(params.q_nope.type));
  DSA_CHECK(params.q_nope.type != DataType::kFp8E4m3, "AbsorbQuery: q_nope is fp8");
  DSA_CHECK(params.w_uk.type != DataType::kFp8E4m3, "AbsorbQuery: w_uk is fp8");
  DSA_CHECK(latent == kLatentValues, "AbsorbQuery: L={}, expected {}", latent, kLatentValues);
  return {.tokens = tokens, .heads = heads, .nope = nope, .latent = latent};
}

}  // namespace dsa
