#include "kernels/ops/latent_attention.h"

#include "common/check.h"
#include "common/shape.h"
#include "kernels/ops/validate.h"

namespace dsa {

LatentAttentionExtents Validate(const LatentAttentionParams& params) {
  ShapeBinder shapes("LatentAttention");
  const auto [tokens, heads, latent] = shapes.Match("q_latent", params.q_latent, "T", "H", "L");
  shapes.Match("q_rope", params.q_rope, "T", "H", "R");
  shapes.Match("o_latent", params.o_latent, "T", "H", "L");
  CheckRows("LatentAttention", shapes, params.rows);
  Validate("LatentAttention", params.selection, tokens);
  DSA_CHECK(latent == kLatentValues, "LatentAttention: L={}, expected {}", latent, kLatentValues);
  DSA_CHECK(params.q_rope.cols == kLatentRopeValues, "LatentAttention: R={}, expected {}",
            params.q_rope.cols, kLatentRopeValues);
  DSA_CHECK(params.q_latent.type != DataType::kFp8E4m3, "LatentAttention: q_latent is fp8");
  DSA_CHECK(
      params.q_rope.type == params.q_latent.type && params.o_latent.type == params.q_latent.type,
      "LatentAttention: q_latent has type {}, q_rope {}, o_latent {}",
      static_cast<int>(params.q_latent.type), static_cast<int>(params.q_rope.type),
      static_cast<int>(params.o_latent.type));
  DSA_CHECK(params.softmax_scale > 0.0, "LatentAttention: softmax_scale={}", params.softmax_scale);
  return {.tokens = tokens, .heads = heads};
}

}  // namespace dsa
