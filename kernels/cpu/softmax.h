// Softmax over the scores of one attention row.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa::cpu {

// values[j] <- round(exp(values[j] - max) / sum), round to `type` (f32 or bf16).  A NaN or an
// infinite maximum makes every probability NaN.  `values` has room for `count` rounded up to 8; the
// padding is overwritten.
void Softmax(float* values, std::int64_t count, DataType type);

}  // namespace dsa::cpu
