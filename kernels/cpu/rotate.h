// The two orthogonal transforms of queries and keys: RoPE by position, and the Hadamard matrix that
// spreads an indexer vector's outliers before it is quantized.
#pragma once

#include "common/check.h"
#include "kernels/cpu/simd.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/rope.h"

#include <cmath>
#include <cstdint>

namespace dsa::cpu {

// Rotates one head of 2 * table.cos.cols values in place.
template <typename T>
inline void RotateHead(T* x, const RopeTable& table, std::int64_t position, RopeLayout layout) {
  DSA_CHECK(position >= 0 && position < table.cos.rows, "RoPE: position {} in a table of {} rows",
            position, table.cos.rows);
  const float* const cosines = table.cos.Row(position);
  const float* const sines = table.sin.Row(position);
  const std::int64_t pairs = table.cos.cols;
  const std::int64_t step = layout == RopeLayout::kInterleaved ? 2 : 1;
  const std::int64_t partner = layout == RopeLayout::kInterleaved ? 1 : pairs;
  for (std::int64_t i = 0; i < pairs; ++i) {
    T& first = x[i * step];
    T& second = x[i * step + partner];
    const float a = LoadOne(&first);
    const float b = LoadOne(&second);
    StoreOne(&first, a * cosines[i] - b * sines[i]);
    StoreOne(&second, b * cosines[i] + a * sines[i]);
  }
}

// x <- H x / sqrt(128), H the Sylvester (natural order) matrix of +-1, by seven rounds of
// butterflies.
inline void HadamardTransform(float* x) {
  for (int half = 1; half < kIndexerValues; half *= 2) {
    for (int first = 0; first < kIndexerValues; first += 2 * half) {
      for (int i = first; i < first + half; ++i) {
        const float a = x[i];
        const float b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
  const float norm = 1.0F / std::sqrt(static_cast<float>(kIndexerValues));
  for (int i = 0; i < kIndexerValues; ++i) {
    x[i] *= norm;
  }
}

}  // namespace dsa::cpu
