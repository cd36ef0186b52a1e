#include "scheduler/sequence.h"

#include "common/check.h"

#include <utility>

namespace dsa {

Sequence::Sequence(Request request, const PrefixHasher& hasher)
    : tokens_(std::move(request.prompt)),
      prompt_tokens_(static_cast<std::int64_t>(tokens_.size())),
      blocks_(hasher.tokens_per_block()),
      request_(std::move(request)) {
  DSA_CHECK(prompt_tokens_ > 0, "Sequence: request {} has no prompt", Value(request_.id));
  DSA_CHECK(request_.stop.max_tokens >= 0, "Sequence: max_tokens is {}", request_.stop.max_tokens);
  request_.prompt.clear();
  const std::int64_t tokens_max = prompt_tokens_ + request_.stop.max_tokens;
  const std::int64_t blocks_max = tokens_max / hasher.tokens_per_block() + 1;
  tokens_.reserve(tokens_max);
  chain_.hashes.reserve(blocks_max);
  blocks_.Reserve(blocks_max);
  if (AdjustedIds::Needed(request_.sampling)) {
    adjusted_ids_ =
        std::make_unique<AdjustedIds>(request_.sampling, tokens_, request_.stop.max_tokens);
  }
  adjusts_logits_ = adjusted_ids_ != nullptr || request_.stop.min_tokens > 0;
  chain_.root = hasher.Root(request_.cache_salt);
  hasher.Extend(tokens_, chain_);
}

}  // namespace dsa
