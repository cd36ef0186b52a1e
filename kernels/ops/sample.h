// From logits to a token, per row and independent of the other rows.
//
//   ids >= vocabulary_limit and the row's suppressed ids are never sampled
//   log-probabilities are of the raw distribution over the allowed vocabulary, before temperature
//   temperature 0: the largest logit, the lower id on ties
//   otherwise, in this order: logits / temperature; min_p (keep p >= min_p * max p); top_k (the k
//   largest, lower id first on ties); top_p (the fewest ids, largest first, lower id first on ties,
//   whose probability after renormalisation reaches top_p); then one draw: the first of the kept
//   ids, in ascending order, at which the running sum of their probabilities exceeds
//   CounterUniform(seed, position)
//
// A row must leave at least one id that is neither suppressed nor above the limit.
// A NaN or infinite logit below vocabulary_limit sets kRowFaultLogits; the row's token
// and log-probability are then 0 and its top_ids -1.
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
  std::int64_t position;          // of the token to be sampled
  std::int32_t suppressed_first;  // its suppressed ids: suppressed[first .. first + count)
  std::int32_t suppressed_count;
  std::int32_t top_logprobs;  // [0, kTopLogprobsMax]
};

struct SampleParams {
  Matrix<const float> logits;             // [R, V]
  Vector<const std::int32_t> logit_rows;  // [R]  row i samples from logits[logit_rows[i]]
  Vector<const SamplingRow> rows;         // [R]
  Vector<const std::int32_t> suppressed;  // ids in [0, V)
  std::int32_t vocabulary_limit;          // in [1, V]
  Vector<std::int32_t> tokens;            // [R]
  Vector<float> logprobs;                 // [R]  of the sampled token
  Matrix<std::int32_t> top_ids;           // [R, 20]  the most likely ids, then -1
  Matrix<float> top_logprobs;             // [R, 20]
  Vector<std::int32_t> faults;            // [R]  bits of RowFault are added
};
struct SampleExtents {
  std::int64_t rows;        // R, may be 0
  std::int64_t vocabulary;  // V
};
SampleExtents Validate(const SampleParams& params);

}  // namespace dsa
