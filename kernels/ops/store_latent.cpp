#include "kernels/ops/store_latent.h"

#include "common/check.h"
#include "common/shape.h"

namespace dsa {

StoreLatentExtents Validate(const StoreLatentParams& params) {
  ShapeBinder shapes("StoreLatent");
  const auto [tokens, cols] = shapes.Match("kv", params.kv, "T", "512+64");
  shapes.Match("positions", params.positions, "T");
  shapes.Match("slots", params.slots, "T");
  shapes.Match("cos", params.table.cos, "P", "R/2");
  shapes.Match("sin", params.table.sin, "P", "R/2");
  DSA_CHECK(cols == kLatentValues + kLatentRopeValues,
            "StoreLatent: kv has {} columns, expected {}", cols, kLatentValues + kLatentRopeValues);
  DSA_CHECK(params.norm_weight.size == kLatentValues,
            "StoreLatent: norm_weight has {} values, expected {}", params.norm_weight.size,
            kLatentValues);
  DSA_CHECK(params.table.cos.cols == kLatentRopeValues / 2,
            "StoreLatent: the table has R/2={}, expected {}", params.table.cos.cols,
            kLatentRopeValues / 2);
  DSA_CHECK(params.kv.type != DataType::kFp8E4m3, "StoreLatent: kv is fp8");
  DSA_CHECK(params.eps > 0.0F, "StoreLatent: eps={}", params.eps);
  return {.tokens = tokens};
}

}  // namespace dsa
