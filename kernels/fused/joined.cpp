#include "kernels/fused/joined.h"

#include "common/view_parts.h"
#include "kernels/kv_layout.h"

namespace dsa {
namespace {

const void* EndOf(const ConstAnyMatrix& matrix) {
  return static_cast<const std::byte*>(matrix.data) +
         matrix.rows * matrix.row_stride * SizeOf(matrix.type);
}

// Of two contiguous matrices of equal width.
bool ScalesContinue(const LinearWeight& first, const LinearWeight& second) {
  const Matrix<const float>& scales = first.scales;
  return first.weight.rows % kValuesPerScale == 0 && scales.data != nullptr &&
         second.scales.data == scales.data + scales.rows * scales.row_stride &&
         second.scales.cols == scales.cols && scales.row_stride == scales.cols &&
         second.scales.row_stride == scales.cols;
}

}  // namespace

std::optional<LinearWeight> Joined(const LinearWeight& first, const LinearWeight& second) {
  const ConstAnyMatrix& a = first.weight;
  const ConstAnyMatrix& b = second.weight;
  if (a.data == nullptr || b.data != EndOf(a) || a.type != b.type || a.cols != b.cols ||
      a.row_stride != a.cols || b.row_stride != a.cols) {
    return std::nullopt;
  }
  if (first.quantized() && !ScalesContinue(first, second)) {
    return std::nullopt;
  }
  LinearWeight joined = first;
  joined.weight.rows += b.rows;
  joined.scales.rows += second.scales.rows;
  return joined;
}

std::optional<AnyMatrix> JoinedColumns(const AnyMatrix& first, const AnyMatrix& second) {
  const auto* behind = static_cast<const std::byte*>(first.data) + first.cols * SizeOf(first.type);
  if (first.data == nullptr || second.data != behind || first.type != second.type ||
      first.rows != second.rows || first.row_stride != second.row_stride ||
      first.row_stride < first.cols + second.cols) {
    return std::nullopt;
  }
  AnyMatrix joined = first;
  joined.cols += second.cols;
  return joined;
}

JoinedProjections Joined(const ProjectParams& params) {
  JoinedProjections joined{};
  for (std::size_t i = 0; i < params.projections.size(); ++i) {
    const Projection& projection = params.projections.at(i);
    if (projection.weight.weight.data == nullptr) {
      continue;
    }
    if (joined.count > 0) {
      JoinedProjection& part = joined.parts.at(joined.count - 1);
      if (const auto weight = Joined(part.weight, projection.weight)) {
        part.weight = *weight;
        part.y = JoinedColumns(part.y, projection.y).value_or(NullMatrix(projection.y.type));
        part.members.at(part.count++) = i;
        continue;
      }
    }
    joined.parts.at(joined.count++) = {
        .members = {i}, .count = 1, .weight = projection.weight, .y = projection.y};
  }
  return joined;
}

}  // namespace dsa
