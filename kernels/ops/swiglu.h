// The activation of a feed-forward layer, in float32 (Shazeer 2020):
//
//   y = round(silu(gate) * up)        silu(z) = z / (1 + exp(-z))
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

struct SwiGluParams {
  ConstAnyMatrix gate;  // [T, I]  f32 or bf16
  ConstAnyMatrix up;    // [T, I]  type of gate
  AnyMatrix y;          // [T, I]  type of gate; may alias gate or up
};
struct SwiGluExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t width;   // I
};
SwiGluExtents Validate(const SwiGluParams& params);

}  // namespace dsa
