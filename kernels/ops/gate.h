// Which experts a token goes to, and with what weight (DeepSeek-V3 paper, section 2.1.2):
//
//   s = sigmoid(x W^T)  in float32         b = s + bias        (b only selects)
//   group score = sum of the two largest b of the group; the best `groups_kept` groups stay, the
//   others are masked with -inf; the K largest b of the rest are chosen
//   weight = s of the chosen [/ (their sum + 1e-20)] * scale
//
// Equal values: the lower group or expert id goes first.  Output is in that order (largest b
// first).  A NaN in b ranks lowest, so that the ids stay valid; the weights carry it on.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

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
  // Rows from the number in device memory on are padding: they get experts and are not counted.
  Vector<const std::int32_t> live_rows{};  // [1]  in [0, T]; data may be null: all
  Vector<std::int32_t> expert_pairs{};     // [E]  += rows that chose the expert; data may be null
};
struct GateExtents {
  std::int64_t tokens;             // T, may be 0
  std::int64_t hidden;             // D
  std::int64_t experts;            // E
  std::int64_t experts_per_token;  // K
};
GateExtents Validate(const GateParams& params);

}  // namespace dsa
