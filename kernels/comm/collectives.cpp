#include "kernels/comm/collectives.h"

#include "kernels/ops/validate.h"

namespace dsa {
namespace {

void CheckRanks(std::string_view op, const ExpertRange& here, std::int64_t copies,
                const Vector<const std::int32_t>& live_rows) {
  DSA_CHECK(here.first >= 0 && here.count >= 0 && copies > 0, "{}: experts {} + {}, copies {}", op,
            here.first, here.count, copies);
  DSA_CHECK(live_rows.data == nullptr || live_rows.size == 1, "{}: live_rows has {} values", op,
            live_rows.size);
}

}  // namespace

AllReduceExtents Validate(const AllReduceParams& params) {
  ShapeBinder shapes("AllReduce");
  const auto [tokens, hidden] = shapes.Match("partial", params.partial, "T", "D");
  shapes.Match("sum", params.sum, "T", "D");
  CheckActivation("AllReduce", "sum", params.sum.type);
  return {.tokens = tokens, .hidden = hidden};
}

AllGatherExtents Validate(const AllGatherParams& params) {
  ShapeBinder shapes("AllGather");
  const auto [rows, part_cols] = shapes.Match("part", params.part, "R", "V of the rank");
  const auto [same_rows, cols] = shapes.Match("whole", params.whole, "R", "V");
  CheckActivation("AllGather", "part", params.part.type);
  CheckSameType("AllGather", "whole", params.whole.type, params.part.type);
  DSA_CHECK(part_cols <= cols, "AllGather: {} of {} columns, {} rows", part_cols, cols, same_rows);
  return {.rows = rows, .cols = cols};
}

DispatchExtents Validate(const DispatchParams& params) {
  ShapeBinder shapes("Dispatch");
  const auto [tokens, hidden] = shapes.Match("x", params.x, "T", "D");
  const auto [same_tokens, per_token] = shapes.Match("experts", params.experts, "T", "K");
  shapes.Match("rows", params.rows, "S * T", "D");
  shapes.Match("row_experts", params.row_experts, "S * T", "K");
  CheckActivation("Dispatch", "x", params.x.type);
  CheckSameType("Dispatch", "rows", params.rows.type, params.x.type);
  if (params.weights.data != nullptr) {
    shapes.Match("weights", params.weights, "T", "K");
    shapes.Match("row_weights", params.row_weights, "S * T", "K");
  }
  DSA_CHECK(per_token > 0, "Dispatch: T={}, K={}", same_tokens, per_token);
  CheckRanks("Dispatch", params.here, params.copies, params.live_rows);
  return {.tokens = tokens, .hidden = hidden, .experts_per_token = per_token};
}

DispatchExtents Validate(const CombineParams& params) {
  ShapeBinder shapes("Combine");
  const auto [tokens, hidden] = shapes.Match("y", params.y, "T", "D");
  const auto [same_tokens, per_token] = shapes.Match("experts", params.experts, "T", "K");
  shapes.Match("weights", params.weights, "T", "K");
  shapes.Match("row_experts", params.row_experts, "S * T", "K");
  CheckActivation("Combine", "y", params.y.type);
  if (params.parts.data != nullptr) {
    shapes.Match("parts", params.parts, "S * T", "D");
    CheckSameType("Combine", "parts", params.parts.type, DataType::kF32);
  } else {
    shapes.Match("contributions", params.contributions, "S * T * K", "D");
    CheckSameType("Combine", "contributions", params.contributions.type, params.y.type);
  }
  if (params.shared.data != nullptr) {
    shapes.Match("shared", params.shared, "T", "D");
    CheckSameType("Combine", "shared", params.shared.type, params.y.type);
  }
  DSA_CHECK(per_token > 0, "Combine: T={}, K={}", same_tokens, per_token);
  CheckRanks("Combine", params.here, params.copies, params.live_rows);
  return {.tokens = tokens, .hidden = hidden, .experts_per_token = per_token};
}

bool CanCombineParts(const DispatchExtents& extents) {
  constexpr std::int64_t kTokens = 256;
  constexpr std::int64_t kHidden = 7168;
  constexpr std::int64_t kChoices = 32;
  constexpr std::int64_t kTogether = 8;  // columns of 16 bytes
  return extents.tokens <= kTokens && extents.hidden <= kHidden &&
         extents.hidden % kTogether == 0 && extents.experts_per_token <= kChoices;
}

}  // namespace dsa
