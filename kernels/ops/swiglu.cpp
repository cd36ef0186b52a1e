#include "kernels/ops/swiglu.h"

#include "kernels/ops/validate.h"

namespace dsa {

SwiGluExtents Validate(const SwiGluParams& params) {
  ShapeBinder shapes("SwiGlu");
  const auto [tokens, width] = shapes.Match("gate", params.gate, "T", "I");
  shapes.Match("up", params.up, "T", "I");
  shapes.Match("y", params.y, "T", "I");
  CheckActivation("SwiGlu", "gate", params.gate.type);
  CheckSameType("SwiGlu", "up", params.up.type, params.gate.type);
  CheckSameType("SwiGlu", "y", params.y.type, params.gate.type);
  return {.tokens = tokens, .width = width};
}

}  // namespace dsa
