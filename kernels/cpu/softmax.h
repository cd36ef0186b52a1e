// Softmax over the scores of one attention row.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa::cpu {

struct SoftmaxRow {
  double* scores;        // [count]  room for `count` rounded up to 4; overwritten
  float* probabilities;  // [count]
  std::int64_t count;
  DataType type;  // f32 or bf16
};

// probabilities[j] = round(exp(scores[j] - max) / sum), round to `type`, all before it in double. A
// NaN or an infinite maximum makes every probability NaN.
void Softmax(const SoftmaxRow& row);

}  // namespace dsa::cpu
