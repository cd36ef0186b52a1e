// The feed-forward part of a layer: SwiGLU, the gate and the routed experts (DeepSeek-V3 paper,
// section 2.1.2; the "noaux_tc" routing of its section 2.1.2 "auxiliary-loss-free").
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

// y = round(silu(gate) * up), in float32.  Shazeer 2020.
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

// Which experts a token goes to, and with what weight:
//
//   s = sigmoid(x W^T)  in float32         b = s + bias        (b only selects)
//   group score = sum of the two largest b of the group; the best `groups_kept` groups stay, the
//   others are masked with -inf; the K largest b of the rest are chosen
//   weight = s of the chosen [/ their sum] * scale
//
// Equal values: the lower group or expert id goes first.  Output is in that order (largest b
// first).
struct GateParams {
  ConstAnyMatrix x;              // [T, D]  f32 or bf16
  ConstAnyMatrix weight;         // [E, D]  f32 or bf16
  Vector<const float> bias;      // [E]
  std::int64_t groups;           // divides E
  std::int64_t groups_kept;      // in [1, groups]
  bool normalize;                // divide the weights by their sum
  float scale;                   // routed_scaling_factor
  Matrix<std::int32_t> experts;  // [T, K]
  Matrix<float> weights;         // [T, K]
};
struct GateExtents {
  std::int64_t tokens;             // T, may be 0
  std::int64_t hidden;             // D
  std::int64_t experts;            // E
  std::int64_t experts_per_token;  // K
};
GateExtents Validate(const GateParams& params);

// The same projection of all experts, one after the other.
struct StackedWeight {
  const void* data;      // [E, N, K]  contiguous
  DataType type;         // f32, bf16 or fp8
  const float* scales;   // [E, ceil(N / 128), ceil(K / 128)] for fp8, else null
  std::int64_t experts;  // E
  std::int64_t rows;     // N
  std::int64_t cols;     // K
};

// y[t] = round(sum_k weights[t, k] * expert(x[t], experts[t, k]) + shared[t])
//
//   expert(x, e) = round(Down_e round(SwiGlu(round(Gate_e x), round(Up_e x))))
//
// The sum is float32, in the order of k, the shared expert's output last.  fp8 experts quantize x
// and the SwiGLU output by `scale_format` as QuantizeFp8 does.
struct RoutedExpertsParams {
  ConstAnyMatrix x;                    // [T, D]  f32 or bf16
  StackedWeight gate;                  // [E, I, D]
  StackedWeight up;                    // [E, I, D]
  StackedWeight down;                  // [E, D, I]
  Matrix<const std::int32_t> experts;  // [T, K]
  Matrix<const float> weights;         // [T, K]
  ConstAnyMatrix shared;               // [T, D]  type of x; data may be null
  ScaleFormat scale_format;
  AnyMatrix y;  // [T, D]  type of x; may alias shared
};
struct RoutedExpertsExtents {
  std::int64_t tokens;             // T, may be 0
  std::int64_t hidden;             // D
  std::int64_t width;              // I
  std::int64_t experts_per_token;  // K
};
RoutedExpertsExtents Validate(const RoutedExpertsParams& params);

}  // namespace dsa
