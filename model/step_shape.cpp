#include "model/step_shape.h"

namespace dsa {

std::vector<StepShape> DecodeShapes(std::span<const std::int64_t> row_buckets,
                                    std::int64_t context_max, std::int64_t dense_max) {
  std::vector<StepShape> shapes;
  for (const std::int64_t rows : row_buckets) {
    std::int64_t below = 0;  // the visible_max before
    while (below < VisibleLimit(context_max)) {
      const std::int64_t visible = RoundUpVisible(below + 1, context_max);
      if (below < dense_max) {
        shapes.push_back(DecodeShape(rows, AttentionPath::kDense, visible));
      }
      if (std::min(visible, context_max) > dense_max) {
        shapes.push_back(DecodeShape(rows, AttentionPath::kSparse, visible));
      }
      below = visible;
    }
  }
  return shapes;
}

}  // namespace dsa
