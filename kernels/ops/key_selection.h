// Which keys a row of attention reads.
#pragma once

#include "common/view.h"

#include <cstdint>
#include <string_view>

namespace dsa {

// The keys a row attends to.
struct KeySelection {
  Matrix<const std::int32_t> positions;  // [T, K] ascending; data null: every visible key
  Vector<const std::int32_t> counts;     // [T]  in [1, K]
};

// CHECK-fails, naming `op`, unless the selection is null or has `tokens` rows.
void Validate(std::string_view op, const KeySelection& selection, std::int64_t tokens);

}  // namespace dsa
