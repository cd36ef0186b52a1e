#include "kernels/ops/block_scaled_linear.h"

#include "kernels/ops/validate.h"

namespace dsa {

LinearExtents Validate(const BlockScaledLinearParams& params) {
  ShapeBinder shapes("BlockScaledLinear");
  const auto [tokens, inputs] = shapes.Match("x", params.x, "T", "K");
  shapes.Match("x_scales", params.x_scales, "T", "K/128");
  const auto [outputs, same_inputs] = shapes.Match("weight", params.weight, "N", "K");
  const auto [output_blocks, input_blocks] =
      shapes.Match("weight_scales", params.weight_scales, "N/128", "K/128");
  shapes.Match("y", params.y, "T", "N");
  CheckProduct("BlockScaledLinear", "y", params.y.type);
  DSA_CHECK(same_inputs > 0 && outputs > 0, "BlockScaledLinear: N={}, K={}", outputs, same_inputs);
  DSA_CHECK(input_blocks == Fp8Blocks(inputs), "BlockScaledLinear: {} scale columns for K={}",
            input_blocks, inputs);
  DSA_CHECK(output_blocks == Fp8Blocks(outputs), "BlockScaledLinear: {} scale rows for N={}",
            output_blocks, outputs);
  return {.tokens = tokens, .inputs = inputs, .outputs = outputs};
}

}  // namespace dsa
