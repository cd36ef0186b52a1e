#include "kernels/ops/linear.h"

#include "kernels/ops/validate.h"

namespace dsa {

LinearExtents Validate(const LinearParams& params) {
  ShapeBinder shapes("Linear");
  const auto [tokens, inputs] = shapes.Match("x", params.x, "T", "K");
  const auto [outputs, same_inputs] = shapes.Match("weight", params.weight, "N", "K");
  shapes.Match("y", params.y, "T", "N");
  CheckActivation("Linear", "x", params.x.type);
  CheckActivation("Linear", "weight", params.weight.type);
  CheckProduct("Linear", "y", params.y.type);
  DSA_CHECK(same_inputs > 0 && outputs > 0, "Linear: N={}, K={}", outputs, same_inputs);
  return {.tokens = tokens, .inputs = inputs, .outputs = outputs};
}

}  // namespace dsa
