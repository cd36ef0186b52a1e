// Selection of the keys that sparse attention reads.
//
// The min(K, visible) positions with the highest scores, exactly, by a total order: higher score
// first, then lower position; -0 equals +0.  A NaN among the visible scores sets
// kRowFaultIndexerNan and selects positions 0 .. count - 1.
#pragma once

#include "common/view.h"
#include "kernels/batch_view.h"

#include <cstdint>

namespace dsa {

struct SelectTopKParams {
  Matrix<const float> scores;            // [T, C]
  Vector<const std::int32_t> positions;  // [T]  visible keys of row t: positions[t] + 1
  Matrix<std::int32_t> selected;         // [T, K]  ascending positions, then -1
  Vector<std::int32_t> counts;           // [T]  min(K, visible)
  Vector<std::int32_t> faults;           // [T]  bits of RowFault are added
};
struct SelectTopKExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t k;       // K, the columns of `selected`
};
SelectTopKExtents Validate(const SelectTopKParams& params);

}  // namespace dsa
