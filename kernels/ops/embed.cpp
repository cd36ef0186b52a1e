#include "kernels/ops/embed.h"

#include "kernels/ops/validate.h"

namespace dsa {

EmbedExtents Validate(const EmbedParams& params) {
  ShapeBinder shapes("Embed");
  const auto [tokens] = shapes.Match("ids", params.ids, "T");
  const auto [vocabulary, hidden] = shapes.Match("table", params.table, "V", "D");
  shapes.Match("x", params.x, "T", "D");
  CheckActivation("Embed", "table", params.table.type);
  CheckActivation("Embed", "x", params.x.type);
  return {.tokens = tokens, .vocabulary = vocabulary, .hidden = hidden};
}

}  // namespace dsa
