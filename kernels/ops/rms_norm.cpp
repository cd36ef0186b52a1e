#include "kernels/ops/rms_norm.h"

#include "kernels/ops/validate.h"

namespace dsa {

RmsNormExtents Validate(const RmsNormParams& params) {
  ShapeBinder shapes("RmsNorm");
  const auto [tokens, hidden] = shapes.Match("x", params.x, "T", "D");
  shapes.Match("weight", params.weight, "D");
  shapes.Match("y", params.y, "T", "D");
  CheckActivation("RmsNorm", "x", params.x.type);
  CheckSameType("RmsNorm", "y", params.y.type, params.x.type);
  if (params.residual.data != nullptr) {
    shapes.Match("residual", params.residual, "T", "D");
    CheckSameType("RmsNorm", "residual", params.residual.type, params.x.type);
  }
  DSA_CHECK(hidden > 0 && hidden % 8 == 0, "RmsNorm: D={} is not a positive multiple of 8", hidden);
  DSA_CHECK(params.eps > 0.0F, "RmsNorm: eps={}", params.eps);
  return {.tokens = tokens, .hidden = hidden};
}

}  // namespace dsa
