// The routed experts of a layer (DeepSeek-V3 paper, section 2.1.2):
//
// y[t] = round(sum_k weights[t, k] * expert(x[t], experts[t, k]) + shared[t])
//
//   expert(x, e) = round(Down_e round(SwiGlu(round(Gate_e x), round(Up_e x))))
//
// over the experts [first_expert, first_expert + E) that are here.  Other ids add nothing: experts
// of other ranks, so that the sums of several ranks add up to the whole, and -1 where there is
// none. The sum is float32, in the order of k, the shared expert's output last.  fp8 experts
// quantize x and the SwiGLU output by `scale_format` as QuantizeFp8 does.
//
// A rank that holds a part of every expert's width leaves its part of the sum: with a y of f64
// (CPU) or f32 (CUDA) neither what Down_e gives nor the sum is rounded to the type of x.  Where
// `contributions` is given, the experts leave what they give there, pair by pair, and nothing
// is added up: Combine does, with the weights (kernels/comm/collectives.h).
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

// The same projection of all experts, one after the other.
struct StackedWeight {
  const void* data;      // [E, N, K]  contiguous
  DataType type;         // f32, bf16 or fp8
  const float* scales;   // [E, ceil(N / 128), ceil(K / 128)] for fp8, else null
  std::int64_t experts;  // E
  std::int64_t rows;     // N
  std::int64_t cols;     // K
};

struct RoutedExpertsParams {
  ConstAnyMatrix x;                    // [T, D]  f32 or bf16
  StackedWeight gate;                  // [E, I, D]
  StackedWeight up;                    // [E, I, D]
  StackedWeight down;                  // [E, D, I]
  std::int64_t first_expert = 0;       // the id of the first of the E experts
  Matrix<const std::int32_t> experts;  // [T, K]  of a token those that are here all differ
  Matrix<const float> weights;         // [T, K]  data may be null beside contributions
  ConstAnyMatrix shared;               // [T, D]  type of y; data may be null
  ScaleFormat scale_format;
  AnyMatrix y;                // [T, D]  type of x, f64 (CPU) or f32 (CUDA); may alias shared
  AnyMatrix contributions{};  // [T * K, D]  type of x and y, which is not written; data may be null
};
struct RoutedExpertsExtents {
  std::int64_t tokens;             // T, may be 0
  std::int64_t hidden;             // D
  std::int64_t width;              // I
  std::int64_t experts_per_token;  // K
};
RoutedExpertsExtents Validate(const RoutedExpertsParams& params);

}  // namespace dsa
