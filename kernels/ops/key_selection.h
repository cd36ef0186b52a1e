// Which keys a row of attention reads.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

// The keys a row attends to.
struct KeySelection {
  Matrix<const std::int32_t> positions;  // [T, K] ascending; data null: every visible key
  Vector<const std::int32_t> counts;     // [T]  in [1, K]
};

}  // namespace dsa
