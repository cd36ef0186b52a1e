// Rotary position embedding (Su et al. 2021) of the R columns of every head, in place:
//
//   (a, b) -> (a cos - b sin, b cos + a sin),  angle = position * frequency[i]
//
// The pair i is (x[2i], x[2i+1]) when interleaved and (x[i], x[i + R/2]) when half-split.  MLA is
// interleaved in every family; the indexer is half-split for DeepSeek and interleaved for GLM.
// The two layouts are never interchangeable, so none is a default.  Float32 arithmetic.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

enum class RopeLayout : std::uint8_t { kInterleaved, kHalfSplit };

// cos and sin of position * frequency, built on the host in double (model/rope_table.h).
struct RopeTable {
  Matrix<const float> cos;  // [P, R / 2]
  Matrix<const float> sin;  // [P, R / 2]
};

struct RopeParams {
  AnyTensor3 x;                          // [T, H, R]  f32 or bf16
  Vector<const std::int32_t> positions;  // [T]  in [0, P)
  RopeTable table;
  RopeLayout layout;
};

struct RopeExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
  std::int64_t width;   // R, even
};
RopeExtents Validate(const RopeParams& params);

}  // namespace dsa
