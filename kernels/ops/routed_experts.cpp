#include "kernels/ops/routed_experts.h"

#include "kernels/ops/validate.h"

namespace dsa {
namespace {

void CheckWeight(std::string_view name, const StackedWeight& weight,
                 const StackedWeight& expected) {
  DSA_CHECK(weight.experts == expected.experts && weight.rows == expected.rows &&
                weight.cols == expected.cols,
            "RoutedExperts: {} is [{}, {}, {}], expected [{}, {}, {}]", name, weight.experts,
            weight.rows, weight.cols, expected.experts, expected.rows, expected.cols);
  CheckSameType("RoutedExperts", name, weight.type, expected.type);
  DSA_CHECK((weight.scales != nullptr) == (weight.type == DataType::kFp8E4m3),
            "RoutedExperts: {} of type {} with scales {}", name, static_cast<int>(weight.type),
            weight.scales != nullptr ? "given" : "missing");
}

}  // namespace

RoutedExpertsExtents Validate(const RoutedExpertsParams& params) {
  ShapeBinder shapes("RoutedExperts");
  const auto [tokens, hidden] = shapes.Match("x", params.x, "T", "D");
  const auto [same_tokens, per_token] = shapes.Match("experts", params.experts, "T", "K");
  shapes.Match("weights", params.weights, "T", "K");
  shapes.Match("y", params.y, "T", "D");
  CheckActivation("RoutedExperts", "x", params.x.type);
  if (params.y.type != DataType::kF64 && params.y.type != DataType::kF32) {
    CheckSameType("RoutedExperts", "y", params.y.type, params.x.type);
  }
  if (params.shared.data != nullptr) {
    shapes.Match("shared", params.shared, "T", "D");
    CheckSameType("RoutedExperts", "shared", params.shared.type, params.y.type);
  }
  if (params.contributions.data != nullptr) {
    shapes.Match("contributions", params.contributions, "T * K", "D");
    CheckSameType("RoutedExperts", "contributions", params.contributions.type, params.x.type);
    CheckSameType("RoutedExperts", "y", params.y.type, params.x.type);
    DSA_CHECK(params.contributions.rows == tokens * per_token &&
                  params.contributions.row_stride == hidden,
              "RoutedExperts: contributions [{}, {}] of stride {}, T={}, K={}",
              params.contributions.rows, hidden, params.contributions.row_stride, same_tokens,
              per_token);
  }
  StackedWeight expected = params.gate;
  expected.cols = hidden;
  CheckWeight("gate", params.gate, expected);
  CheckWeight("up", params.up, expected);
  expected.rows = hidden;
  expected.cols = params.gate.rows;
  CheckWeight("down", params.down, expected);
  DSA_CHECK(params.first_expert >= 0, "RoutedExperts: first_expert={}", params.first_expert);
  DSA_CHECK(hidden > 0 && params.gate.rows > 0 && params.gate.experts > 0 && per_token > 0,
            "RoutedExperts: T={}, D={}, I={}, E={}, K={}", same_tokens, hidden, params.gate.rows,
            params.gate.experts, per_token);
  return {.tokens = tokens,
          .hidden = hidden,
          .width = params.gate.rows,
          .experts_per_token = per_token};
}

}  // namespace dsa
