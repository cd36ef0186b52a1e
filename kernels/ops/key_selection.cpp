#include "kernels/ops/key_selection.h"

#include "common/check.h"
#include "common/shape.h"

namespace dsa {

void Validate(std::string_view op, const KeySelection& selection, std::int64_t tokens) {
  if (selection.slots.data != nullptr) {
    ShapeBinder shapes(op);
    shapes.Match("selection", selection.slots, "T", "K");
    shapes.Match("counts", selection.counts, "T");
    DSA_CHECK(selection.counts.size == tokens, "{}: the selection has T={}, expected {}", op,
              selection.counts.size, tokens);
  }
  if (selection.mask.data != nullptr) {
    DSA_CHECK(selection.mask.rows == tokens, "{}: the mask has T={}, expected {}", op,
              selection.mask.rows, tokens);
  }
}

}  // namespace dsa
