// The ids whose logits a request's penalties and biases change, as one list that grows with the
// reply: a function of the request and the tokens generated so far, whatever happens to their keys.
// Made by the thread that submits, afterwards of the engine thread; owned by the Sequence.
//
//   repetition   of ids in the prompt or generated: z > 0 ? z / repetition : z * repetition
//   then added   bias - frequency * times generated - presence where it was generated
//
// vLLM's definitions of the penalties; the addend is summed in double and rounded once.
#pragma once

#include "common/ids.h"
#include "scheduler/request.h"

#include <cstdint>
#include <span>
#include <vector>

namespace dsa {

class AdjustedIds final {
 public:
  struct Entry {
    TokenId id;
    float add;         // finite
    float repetition;  // > 0
  };

  // Whether any logit can ever be changed.
  static bool Needed(const SamplingParams& sampling);

  // Reserves what a reply of `tokens_max` can need.  `sampling` is valid.
  AdjustedIds(const SamplingParams& sampling, std::span<const TokenId> prompt,
              std::int64_t tokens_max);

  // The next token of the reply.  Allocates nothing.
  void Count(TokenId id);

  std::span<const Entry> entries() const { return entries_; }  // each id once
  // The entry that the last Count changed or added; -1: none.
  std::int64_t changed() const { return changed_; }

 private:
  std::int64_t PlaceOf(TokenId id) const;
  std::int64_t FindOrAdd(TokenId id);

  const float frequency_;
  const float presence_;
  const float repetition_;
  std::vector<Entry> entries_;
  std::vector<std::int32_t> generated_;  // by entry: how often
  std::vector<float> biases_;            // of the first entries
  std::vector<std::int32_t> table_;      // entries by a hash of their id; -1: free
  std::int64_t changed_ = -1;
};

}  // namespace dsa
