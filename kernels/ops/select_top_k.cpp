#include "kernels/ops/select_top_k.h"

#include "common/check.h"
#include "common/shape.h"
#include "kernels/ops/validate.h"

namespace dsa {

SelectTopKExtents Validate(const SelectTopKParams& params) {
  ShapeBinder shapes("SelectTopK");
  const auto [tokens, context] = shapes.Match("scores", params.scores, "T", "C");
  CheckRows("SelectTopK", shapes, params.rows);
  shapes.Match("counts", params.counts, "T");
  shapes.Match("faults", params.faults, "T");
  if (params.mask.data != nullptr) {
    shapes.Match("mask", params.mask, "T", "W");
  }
  for (const Matrix<std::int32_t>& list : {params.slots, params.positions}) {
    DSA_CHECK(list.data == nullptr || (list.rows == tokens && list.cols == params.k),
              "SelectTopK: a list of {} x {}, expected {} x {}", list.rows, list.cols, tokens,
              params.k);
  }
  DSA_CHECK(params.k > 0, "SelectTopK: K={} over {} columns", params.k, context);
  DSA_CHECK(tokens == 0 || params.slots.data != nullptr || params.mask.data != nullptr,
            "SelectTopK: neither slots nor mask of {} rows", tokens);
  return {.tokens = tokens, .k = params.k};
}

}  // namespace dsa
