// Which keys a row of attention reads.
#pragma once

#include "common/view.h"

#include <cstdint>
#include <string_view>

namespace dsa {

// The keys that a row attends to, as SelectTopK writes them: as a list for the absorbed form, as
// bits for the masked one.  With neither, every visible key.
struct KeySelection {
  // Where the keys lie in the paged cache, block * 64 + offset, in ascending *position* (not in
  // ascending slot), then -1.  LatentAttention reads it.
  Matrix<const std::int32_t> slots;   // [T, K]
  Vector<const std::int32_t> counts;  // [T]  in [0, K]: keys of a row; without any its output is 0
  // Bit s % 64 of word s / 64: whether the row attends to position s.  MaskedAttention reads it.
  Matrix<const std::uint64_t> mask;  // [T, W]  every visible position is below 64 W
  // The positions of `slots`, in the same places; for tests and introspection, no kernel reads it.
  Matrix<const std::int32_t> positions;  // [T, K]
};

// CHECK-fails, naming `op`, unless each part is null or has `tokens` rows, and `slots` has counts.
void Validate(std::string_view op, const KeySelection& selection, std::int64_t tokens);

}  // namespace dsa
