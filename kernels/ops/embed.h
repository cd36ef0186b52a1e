// Embedding look-up:  x[t] = table[ids[t]], converted to the type of x.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

struct EmbedParams {
  Vector<const std::int32_t> ids;  // [T]  in [0, V); another value is a bug of the caller
  ConstAnyMatrix table;            // [V, D]  f32 or bf16
  AnyMatrix x;                     // [T, D]  f32 or bf16
};

struct EmbedExtents {
  std::int64_t tokens;      // T, may be 0
  std::int64_t vocabulary;  // V
  std::int64_t hidden;      // D
};
EmbedExtents Validate(const EmbedParams& params);

}  // namespace dsa
