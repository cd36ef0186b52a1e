#include "kernels/ops/select_top_k.h"

#include "common/check.h"
#include "common/shape.h"

namespace dsa {

SelectTopKExtents Validate(const SelectTopKParams& params) {
  ShapeBinder shapes("SelectTopK");
  const auto [tokens, context] = shapes.Match("scores", params.scores, "T", "C");
  shapes.Match("positions", params.positions, "T");
  const auto [rows, k] = shapes.Match("selected", params.selected, "T", "K");
  shapes.Match("counts", params.counts, "T");
  shapes.Match("faults", params.faults, "T");
  DSA_CHECK(k > 0, "SelectTopK: K={} of {} rows over {} columns", k, rows, context);
  return {.tokens = tokens, .k = k};
}

}  // namespace dsa
