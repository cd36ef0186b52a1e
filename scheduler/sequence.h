// How far one request has come.  Made by the thread that submits it, afterwards touched by the
// engine thread only; owned by the scheduler while it is live.
#pragma once

#include "cache/block_table.h"
#include "cache/prefix_cache.h"
#include "cache/prefix_hash.h"
#include "common/cache_line.h"
#include "common/clock.h"
#include "common/ids.h"
#include "scheduler/adjusted_ids.h"
#include "scheduler/request.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace dsa {

enum class SequenceState : std::uint8_t { kWaiting, kRunning };

// What a data rank's prefix cache had of a request that waits when it was last looked up.
struct FoundPrefix {
  RequestId request{-1};
  std::int64_t changes = -1;  // BlockPool::changes() then
  CachedPrefix prefix;
};

class alignas(kCacheLineBytes) Sequence final {
 public:
  // Takes the request's prompt, hashes its full blocks and reserves all memory that the sequence
  // will use, so that nothing is allocated while it runs.
  Sequence(Request request, const PrefixHasher& hasher);
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  const Request& request() const { return request_; }  // its prompt is empty: see token_ids()
  std::span<const TokenId> token_ids() const { return tokens_; }  // prompt, then generated
  std::int64_t tokens() const { return static_cast<std::int64_t>(tokens_.size()); }
  std::int64_t prompt_tokens() const { return prompt_tokens_; }
  std::int64_t generated() const { return tokens() - prompt_tokens_; }
  std::int64_t computed() const { return computed_; }  // tokens whose keys are in the cache
  std::int64_t behind() const { return tokens() - computed_; }  // 1 while it decodes
  // Tokens whose keys it can ever need: all but the last one generated.
  std::int64_t computed_max() const {
    return prompt_tokens_ + std::max<std::int64_t>(1, request_.stop.max_tokens) - 1;
  }
  // Of a request that wants no tokens: its prompt is computed, which is all.
  bool only_prompt() const { return request_.stop.max_tokens == 0; }

  // Asks the host's caches for what a step reads.
  void Prefetch() const { PrefetchLines<3>(this); }

  SequenceId id() const { return id_; }  // ascending in the order of arrival at the scheduler
  std::int32_t slot() const { return slot_; }
  SequenceState state() const { return state_; }
  std::int32_t preemptions() const { return preemptions_; }
  bool fully_reserved() const { return fully_reserved_; }  // never preempted
  // It started as a newcomer, before others that were waiting and come before it in order.
  bool passed() const { return passed_; }
  const BlockTable& blocks() const { return blocks_; }
  // Prompt tokens that were not computed because the prefix cache had them when the sequence
  // first ran.  What a preempted sequence finds again does not count.
  std::int64_t cache_hit_tokens() const { return cache_hit_tokens_; }
  // Tokens that had been computed when a preemption took their keys; those below are computed
  // again.
  std::int64_t computed_before() const { return computed_before_; }
  const std::optional<MonotonicUs>& first_scheduled_us() const { return first_scheduled_us_; }
  // What its penalties and biases make of the next logits; null where it has none.
  const AdjustedIds* adjusted_ids() const { return adjusted_ids_.get(); }
  // It has those, or its min_tokens suppress ids.
  bool adjusts_logits() const { return adjusts_logits_; }
  // Positions below take a masked path (common/attention_path.h); constant once it first ran.
  std::int64_t masked_until() const { return masked_until_; }

 private:
  friend class Scheduler;  // the only writer

  // What every step reads comes first, each line for as few parts of the step as can be.  Line 0:
  // all.
  std::vector<TokenId> tokens_;
  std::int64_t computed_ = 0;
  std::int64_t computed_before_ = 0;
  std::int64_t prompt_tokens_;
  SequenceId id_{};
  std::int32_t slot_ = -1;
  SequenceState state_ = SequenceState::kWaiting;
  bool fully_reserved_ = false;
  bool passed_ = false;
  bool adjusts_logits_ = false;
  // Line 1: the plan and the batch.
  BlockTable blocks_;
  // Line 2: the plan, its commit, and usage.
  std::int64_t planned_ = 0;  // the last plan that gave it tokens
  std::int64_t masked_until_ = 0;
  std::int64_t cache_hit_tokens_ = 0;
  std::optional<MonotonicUs> first_scheduled_us_;
  std::int32_t preemptions_ = 0;
  PrefixChain chain_;  // its counts lie in line 2
  // A line for sampling.
  alignas(kCacheLineBytes) Request request_;
  std::unique_ptr<AdjustedIds> adjusted_ids_;
  FoundPrefix found_;  // while it waits at one of several data ranks
};

}  // namespace dsa
