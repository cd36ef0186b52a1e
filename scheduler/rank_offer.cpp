#include "scheduler/rank_offer.h"

#include "scheduler/scheduler.h"

#include <algorithm>
#include <tuple>

namespace dsa {

std::optional<std::size_t> ChooseRank(std::span<const RankOffer> ranks) {
  std::optional<std::size_t> chosen;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const RankOffer& offer = ranks[rank];
    if (!offer.can_start) {
      continue;
    }
    const auto order = [](const RankOffer& of) {
      return std::tie(of.tokens_to_first, of.sequences);
    };
    if (!chosen || order(offer) < order(ranks[*chosen])) {
      chosen = rank;
    }
  }
  return chosen;
}

// Asked in every step while somebody waits: looks only for what may have changed since.
const CachedPrefix& Scheduler::CachedPrefixOf(const Sequence& sequence, FoundPrefix& found) const {
  if (found.request != sequence.request_.id || found.changes != pool_.changes()) {
    found = {.request = sequence.request_.id, .changes = pool_.changes(), .prefix = {}};
  }
  if (ComputesWholePrompt(sequence.request_)) {
    return found.prefix;
  }
  const std::int64_t blocks_max = (sequence.tokens() - 1) / pool_.tokens_per_block();
  found.prefix = cache_.Peek(sequence.token_ids(), blocks_max, sequence.chain_, found.prefix);
  return found.prefix;
}

std::int64_t Scheduler::TokensOwed() {
  std::int64_t tokens = 0;
  for (const Sequence* sequence : running_) {
    tokens += sequence->behind() > 1 ? sequence->behind() : 0;
  }
  for (Sequence* sequence : waiting_) {
    const CachedPrefix& cached = CachedPrefixOf(*sequence, sequence->found_);
    // What a sibling computes now for both is counted there.
    const std::int64_t awaited =
        AwaitsSibling(*sequence) ? (sequence->prompt_tokens_ - 1) / pool_.tokens_per_block() : 0;
    tokens += sequence->tokens() - std::max(cached.blocks, awaited) * pool_.tokens_per_block();
  }
  return tokens;
}

bool Scheduler::HoldsSiblingOf(const Sequence& sequence) const {
  const std::optional<RequestId>& siblings = sequence.request_.siblings;
  const auto is_sibling = [&](const Sequence* other) {
    return other->request_.siblings == siblings;
  };
  return siblings.has_value() && (std::any_of(running_.begin(), running_.end(), is_sibling) ||
                                  std::any_of(waiting_.begin(), waiting_.end(), is_sibling));
}

RankOffer Scheduler::OfferFor(const Sequence& sequence) {
  const auto sequences = static_cast<std::int64_t>(running_.size() + waiting_.size());
  if (sequences >= config_.sequences_max) {
    return {.can_start = false, .tokens_to_first = 0, .sequences = sequences};
  }
  const CachedPrefix cached = CachedPrefixOf(sequence, offered_);
  // Blocks that somebody holds are shared for nothing.
  std::int64_t need = BlocksToStart(sequence) - (cached.blocks - cached.unreferenced);
  for (const Sequence* waiting : waiting_) {
    need += BlocksToStart(*waiting) + 1;  // and one to grow
  }
  return {.can_start = need + SpareBlocks() <= pool_.available_blocks(),
          .tokens_to_first =
              sequence.tokens() - cached.blocks * pool_.tokens_per_block() + TokensOwed(),
          .sequences = sequences};
}

}  // namespace dsa
