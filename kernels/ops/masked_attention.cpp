#include "kernels/ops/masked_attention.h"

#include "common/check.h"
#include "common/shape.h"
#include "kernels/ops/validate.h"

namespace dsa {

MaskedAttentionExtents Validate(const MaskedAttentionParams& params) {
  ShapeBinder shapes("MaskedAttention");
  const auto [tokens, heads, width] = shapes.Match("q", params.q, "T", "H", "N+R");
  shapes.Match("w_uk", params.w_uk, "H", "N", "L");
  shapes.Match("w_uv", params.w_uv, "H", "V", "L");
  shapes.Match("o", params.o, "T", "H", "V");
  CheckRows("MaskedAttention", shapes, params.rows);
  Validate("MaskedAttention", params.selection, tokens);
  const std::int64_t nope = params.w_uk.heads;
  const std::int64_t value = params.w_uv.heads;
  DSA_CHECK(width == nope + kLatentRopeValues, "MaskedAttention: q has {} columns, expected {}",
            width, nope + kLatentRopeValues);
  DSA_CHECK(params.w_uk.cols == kLatentValues, "MaskedAttention: L={}, expected {}",
            params.w_uk.cols, kLatentValues);
  DSA_CHECK(params.q.type != DataType::kFp8E4m3 && params.o.type == params.q.type,
            "MaskedAttention: q has type {}, o {}", static_cast<int>(params.q.type),
            static_cast<int>(params.o.type));
  DSA_CHECK(params.w_uk.type != DataType::kFp8E4m3 && params.w_uv.type == params.w_uk.type,
            "MaskedAttention: w_uk has type {}, w_uv {}", static_cast<int>(params.w_uk.type),
            static_cast<int>(params.w_uv.type));
  DSA_CHECK(params.softmax_scale > 0.0, "MaskedAttention: softmax_scale={}", params.softmax_scale);
  return {.tokens = tokens, .heads = heads, .nope = nope, .value = value};
}

}  // namespace dsa
