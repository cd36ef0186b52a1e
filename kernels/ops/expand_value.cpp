#include "kernels/ops/expand_value.h"

#include "common/check.h"
#include "common/shape.h"
#include "kernels/kv_layout.h"

namespace dsa {

ExpandValueExtents Validate(const ExpandValueParams& params) {
  ShapeBinder shapes("ExpandValue");
  const auto [tokens, heads, latent] = shapes.Match("o_latent", params.o_latent, "T", "H", "L");
  shapes.Match("w_uv", params.w_uv, "H", "V", "L");
  shapes.Match("o", params.o, "T", "H", "V");
  const std::int64_t value = params.o.cols;
  DSA_CHECK(params.o.type == params.o_latent.type, "ExpandValue: o has type {}, o_latent {}",
            static_cast<int>(params.o.type), static_cast<int>(params.o_latent.type));
  DSA_CHECK(params.o_latent.type != DataType::kFp8E4m3, "ExpandValue: o_latent is fp8");
  DSA_CHECK(params.w_uv.type != DataType::kFp8E4m3, "ExpandValue: w_uv is fp8");
  DSA_CHECK(latent == kLatentValues, "ExpandValue: L={}, expected {}", latent, kLatentValues);
  return {.tokens = tokens, .heads = heads, .value = value, .latent = latent};
}

}  // namespace dsa
