// From logits to a token, per row and independent of the other rows.
//
//   allowed ids: below vocabulary_limit, with their bit in the row's mask, not suppressed; no other
//   is ever sampled
//   log-probabilities are of the raw logits over the allowed ids: before adjustments and
//   temperature adjustments: z = (z > 0 ? z / repetition : z * repetition) + add, in float32, each
//   operation rounded, clamped to finite values; an add of -inf suppresses the id temperature 0:
//   the largest logit, the lower id on ties otherwise, in this order: logits / temperature; min_p
//   (keep p >= min_p * max p); top_k (the k largest, lower id first on ties); top_p (the fewest
//   ids, largest first, lower id first on ties, whose probability after renormalisation reaches
//   top_p); then one draw: the first of the kept ids, in ascending order, at which the running sum
//   of their probabilities exceeds CounterUniform(seed, position)
//
// Weights exp((z - max) / temperature) are taken in double.  The CPU adds them in double, in
// ascending order of ids; CUDA adds integers, the weights as multiples of 2^-44 or finer, whose sum
// has no order.  So the backends draw the same token unless a border lies within 1e-9 of the
// target.
//
// A NaN or infinite logit below vocabulary_limit sets kRowFaultLogits, a row without an allowed id
// kRowFaultNoCandidate; the row's token and log-probability are then 0 and its top_ids -1.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

inline constexpr int kTopLogprobsMax = 20;

// What one row asks for.  Ranges are checked where requests enter, not here.
struct SamplingRow {
  float temperature;   // 0 is greedy
  float min_p;         // [0, 1]; 0 keeps all
  float top_p;         // (0, 1]; 1 keeps all
  std::int32_t top_k;  // > 0, or 0 for all
  std::uint64_t seed;
  std::int64_t position;           // of the token to be sampled
  std::int32_t adjustments_first;  // its adjustments: adjustments[first .. first + count)
  std::int32_t adjustments_count;
  std::int32_t top_logprobs;  // [0, kTopLogprobsMax]
  std::int32_t mask = -1;     // its row of `masks`; -1: every id is allowed
};

// What changes an id's logit before temperature: penalties, biases, suppression.
struct LogitAdjustment {
  std::int32_t id;   // in [0, V); a row names an id once at most, suppressions aside
  float add;         // finite, or -inf: the id is suppressed
  float repetition;  // > 0; 1 changes nothing
};

struct SampleParams {
  Matrix<const float> logits;             // [R, V]
  Vector<const std::int32_t> logit_rows;  // [R]  row i samples from logits[logit_rows[i]]
  Vector<const SamplingRow> rows;         // [R]
  Vector<const LogitAdjustment> adjustments;
  Matrix<const std::uint64_t> masks;  // [M, ceil(V / 64)]  id i: bit i % 64 of word i / 64
  std::int32_t vocabulary_limit;      // in [1, V]
  Vector<std::int32_t> tokens;        // [R]
  Vector<float> logprobs;             // [R]  of the sampled token
  Matrix<std::int32_t> top_ids;       // [R, 20]  the most likely ids, then -1
  Matrix<float> top_logprobs;         // [R, 20]
  Vector<std::int32_t> faults;        // [R]  bits of RowFault are added
};
struct SampleExtents {
  std::int64_t rows;        // R, may be 0
  std::int64_t vocabulary;  // V
};
SampleExtents Validate(const SampleParams& params);

}  // namespace dsa
