#include "tests/sim/rank_laws.h"

#include "tests/sim/wait_laws.h"

#include <algorithm>
#include <tuple>

#include <fmt/format.h>

namespace dsa::sim {

void RankLaws::BeginStep() {
  running_before_.assign(static_cast<std::size_t>(config_.data_ranks), {});
  preemptions_before_.assign(running_before_.size(), 0);
  for (std::size_t rank = 0; rank < running_before_.size(); ++rank) {
    for (const Sequence* sequence : engine_->scheduler(rank).running()) {
      running_before_[rank].insert(IdOf(*sequence));
    }
    preemptions_before_[rank] = engine_->scheduler(rank).preemptions();
  }
}

// By a chain of its own, and looked up anew.
CachedPrefix RankLaws::CachedOf(const Sequence& sequence, std::size_t rank) const {
  if (sequence.request().prompt_logits != PromptLogits::kNone ||
      sequence.request().prompt_logprobs.has_value()) {
    return {};
  }
  const PrefixHasher hasher({.identity = "sim",
                             .tokens_per_block = config_.tokens_per_block,
                             .hash_bits = config_.hash_bits});
  PrefixChain chain;
  chain.root = hasher.Root(sequence.request().cache_salt);
  hasher.Extend(sequence.token_ids(), chain);
  const std::int64_t blocks_max = (sequence.tokens() - 1) / config_.tokens_per_block;
  return engine_->prefix_cache(rank).Peek(sequence.token_ids(), blocks_max, chain);
}

std::int64_t RankLaws::UncachedTokens(const Sequence& sequence, std::size_t rank) const {
  return sequence.tokens() - CachedOf(sequence, rank).blocks * config_.tokens_per_block;
}

std::int64_t RankLaws::BlocksToStart(const Sequence& sequence) const {
  const bool full = config_.scheduler.reservation == ReservationMode::kFull ||
                    sequence.preemptions() >= config_.scheduler.preemptions_max;
  const std::int64_t tokens = full ? sequence.computed_max() : sequence.tokens();
  return (tokens + config_.tokens_per_block - 1) / config_.tokens_per_block;
}

// Blocks without what a prefix saves of them, which makes them fewer at most.
RankOffer RankLaws::OfferOf(const Sequence& sequence, std::size_t rank) const {
  const Scheduler& scheduler = engine_->scheduler(rank);
  RankOffer offer{.tokens_to_first = UncachedTokens(sequence, rank)};
  std::int64_t need = BlocksToStart(sequence);
  for (const Sequence* running : scheduler.running()) {
    offer.tokens_to_first += running->behind() > 1 ? running->behind() : 0;
    need += running->fully_reserved() ? 0 : 1;
  }
  for (const Sequence* waiting : scheduler.waiting()) {
    offer.tokens_to_first +=
        std::min(UncachedTokens(*waiting, rank), waiting->tokens() - AwaitedTokens(*waiting, rank));
    need += BlocksToStart(*waiting) + 1;
  }
  offer.sequences =
      static_cast<std::int64_t>(scheduler.running().size() + scheduler.waiting().size());
  offer.can_start = offer.sequences < config_.scheduler.sequences_max &&
                    need <= engine_->pool(rank).available_blocks();
  return offer;
}

// With what a prefix saves of them.
bool RankLaws::HasBlocks(const Sequence& sequence, std::size_t rank) const {
  const Scheduler& scheduler = engine_->scheduler(rank);
  const CachedPrefix cached = CachedOf(sequence, rank);
  std::int64_t need = BlocksToStart(sequence) - (cached.blocks - cached.unreferenced);
  for (const Sequence* running : scheduler.running()) {
    need += running->fully_reserved() ? 0 : 1;
  }
  for (const Sequence* waiting : scheduler.waiting()) {
    need += BlocksToStart(*waiting) + 1;
  }
  return need <= engine_->pool(rank).available_blocks();
}

// Where others of its answers live.
std::optional<std::size_t> RankLaws::RankOfSiblings(const Sequence& sequence) const {
  std::optional<std::size_t> home;
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(config_.data_ranks); ++rank) {
    for (const auto& other : engine_->scheduler(rank).sequences()) {
      if (other == nullptr || !sequence.request().siblings.has_value() ||
          other->request().siblings != sequence.request().siblings) {
        continue;
      }
      SIM_CHECK(!home.has_value() || *home == rank,
                fmt::format("siblings of request {} are on two ranks", IdOf(sequence)));
      home = rank;
    }
  }
  return home;
}

// What a sibling before it has still to compute for both.
std::int64_t RankLaws::AwaitedTokens(const Sequence& sequence, std::size_t rank) const {
  const std::int64_t shared = (sequence.prompt_tokens() - 1) / config_.tokens_per_block;
  for (const auto& other : engine_->scheduler(rank).sequences()) {
    if (other != nullptr && sequence.request().siblings.has_value() &&
        other->request().siblings == sequence.request().siblings && IdOf(*other) < IdOf(sequence) &&
        other->computed() / config_.tokens_per_block < shared) {
      return shared * config_.tokens_per_block;
    }
  }
  return 0;
}

void RankLaws::CheckChoice(const Sequence& sequence, std::size_t chosen) const {
  const auto order = [](const RankOffer& offer) {
    return std::tuple(offer.tokens_to_first, offer.sequences);
  };
  const RankOffer best = OfferOf(sequence, chosen);
  SIM_CHECK(
      best.sequences < config_.scheduler.sequences_max,
      fmt::format("request {} is bound to rank {}, which has no place", IdOf(sequence), chosen));
  SIM_CHECK(
      HasBlocks(sequence, chosen),
      fmt::format("request {} is bound to rank {}, which lacks blocks", IdOf(sequence), chosen));
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(config_.data_ranks); ++rank) {
    const RankOffer other = OfferOf(sequence, rank);
    SIM_CHECK(!other.can_start || order(best) <= order(other),
              fmt::format("request {} is bound to rank {} with {} tokens to compute and {} "
                          "sequences, rank {} has {} and {}",
                          IdOf(sequence), chosen, best.tokens_to_first, best.sequences, rank,
                          other.tokens_to_first, other.sequences));
  }
}

void RankLaws::OnBind(const Sequence& sequence, std::size_t chosen) {
  const std::optional<std::size_t> home = RankOfSiblings(sequence);
  SIM_CHECK(home.value_or(chosen) == chosen,
            fmt::format("request {} is bound to rank {} and its siblings are not", IdOf(sequence),
                        chosen));
  if (!home.has_value()) {
    CheckChoice(sequence, chosen);
  }
  const bool priority = config_.scheduler.policy == SchedulingPolicyKind::kPriority;
  for (const auto& other : engine_->unbound()) {
    if (other == nullptr || other->sequence == nullptr || other->sequence.get() == &sequence) {
      continue;  // bound in this step
    }
    const Request& a = sequence.request();
    const Request& b = other->sequence->request();
    const bool before =
        priority && a.priority != b.priority ? a.priority < b.priority : Value(a.id) < Value(b.id);
    SIM_CHECK(before, fmt::format("request {} is bound before {}", Value(a.id), Value(b.id)));
  }
  bound_elsewhere_ += chosen > 0 ? 1 : 0;
}

bool RankLaws::StartedOrPreempted(std::size_t rank) const {
  const Scheduler& scheduler = engine_->scheduler(rank);
  return scheduler.preemptions() != preemptions_before_[rank] ||
         std::any_of(scheduler.running().begin(), scheduler.running().end(),
                     [&](const Sequence* sequence) {
                       return !running_before_[rank].contains(IdOf(*sequence));
                     });
}

// A plan that starts nobody leaves no more room than there was before.
void RankLaws::CheckIdle() const {
  const auto unbound = engine_->unbound();
  if (unbound.empty()) {
    return;
  }
  const Sequence& first = *unbound.front()->sequence;
  if (const std::optional<std::size_t> home = RankOfSiblings(first); home.has_value()) {
    const auto sequences = engine_->scheduler(*home).sequences();
    SIM_CHECK(std::none_of(sequences.begin(), sequences.end(),
                           [](const auto& sequence) { return sequence == nullptr; }),
              fmt::format("request {} could wait beside its siblings", IdOf(first)));
    return;
  }
  for (std::size_t rank = 0; rank < running_before_.size(); ++rank) {
    const RankOffer offer = OfferOf(first, rank);
    SIM_CHECK(offer.sequences > 0,
              fmt::format("rank {} has nothing to do while request {} waits", rank, IdOf(first)));
    SIM_CHECK(!offer.can_start || StartedOrPreempted(rank),
              fmt::format("request {} could start on rank {} and waits", IdOf(first), rank));
  }
}

void RankLaws::CheckTogether(const FakeExecutors& executors) const {
  if (config_.data_ranks == 1) {
    return;
  }
  std::int64_t rows = 0;
  bool any_sparse = false;
  bool all_decode = true;
  const FakeExecutor::Launched& first = executors.At(0).launched();
  for (std::size_t rank = 0; rank < executors.size(); ++rank) {
    const FakeExecutor::Launched& launched = executors.At(rank).launched();
    SIM_CHECK(launched.steps == first.steps, fmt::format("rank {} leaves out a step", rank));
    SIM_CHECK(launched.recorded == first.recorded, "a step is recorded on some ranks");
    SIM_CHECK(launched.shape.exchange_rows == first.shape.exchange_rows &&
                  launched.shape.exchange_rows >= launched.shape.tokens,
              fmt::format("rank {} exchanges {} rows, the first {}", rank,
                          launched.shape.exchange_rows, first.shape.exchange_rows));
    SIM_CHECK(!first.recorded || launched.shape == first.shape,
              "ranks record steps of different shapes");
    rows = std::max(rows, launched.rows);
    any_sparse = any_sparse || launched.any_sparse;
    all_decode = all_decode && launched.decodes;
  }
  const bool is_sparse = first.shape.rows[static_cast<std::size_t>(AttentionPath::kSparse)] > 0;
  SIM_CHECK(!first.recorded || is_sparse == any_sparse, "a recorded step takes another path");
  SIM_CHECK(first.recorded == (all_decode && !config_.row_buckets.empty()),
            "a step of replies alone is not recorded, or another one is");
  const std::int64_t due = first.recorded ? *std::lower_bound(config_.row_buckets.begin(),
                                                              config_.row_buckets.end(), rows)
                                          : rows;
  SIM_CHECK(first.shape.exchange_rows == due,
            fmt::format("{} rows are exchanged, {} are due", first.shape.exchange_rows, due));
}

}  // namespace dsa::sim
