// Row selection:  y[r] = x[rows[r]].  Picks the rows that need logits.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

struct GatherRowsParams {
  ConstAnyMatrix x;                 // [T, D]
  Vector<const std::int32_t> rows;  // [R]  in [0, T)
  AnyMatrix y;                      // [R, D]  the type of x; must not alias x
};

struct GatherRowsExtents {
  std::int64_t rows;    // R, may be 0
  std::int64_t hidden;  // D
};
GatherRowsExtents Validate(const GatherRowsParams& params);

}  // namespace dsa
