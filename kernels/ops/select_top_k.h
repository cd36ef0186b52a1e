// Selection of the keys that sparse attention reads.
//
// The min(K, visible) positions with the highest scores, exactly, by a total order: higher score
// first, then lower position; -0 equals +0.  A NaN among the visible scores sets
// kRowFaultIndexerNan and selects positions 0 .. count - 1.
//
// The outputs are the parts of a KeySelection (kernels/ops/key_selection.h).  Those that are null
// are not written; `slots` or `mask` must be there.
#pragma once

#include "common/view.h"
#include "kernels/batch_view.h"

#include <cstdint>

namespace dsa {

struct SelectTopKParams {
  Matrix<const float> scores;      // [T, C]
  PagedRows rows;                  // [T]  visible keys of row t: positions[t] + 1, at most C
  std::int64_t k;                  // K > 0
  Matrix<std::int32_t> slots;      // [T, K]  in ascending position, then -1; data may be null
  Matrix<std::uint64_t> mask;      // [T, W]  all W words; visible keys < 64 W; data may be null
  Matrix<std::int32_t> positions;  // [T, K]  ascending, then -1; data may be null
  Vector<std::int32_t> counts;     // [T]  min(K, visible)
  Vector<std::int32_t> faults;     // [T]  bits of RowFault are added
};
struct SelectTopKExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t k;       // K
};
SelectTopKExtents Validate(const SelectTopKParams& params);

}  // namespace dsa
