#include "scheduler/scheduler.h"

#include "common/check.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace dsa {

Scheduler::Scheduler(const SchedulerConfig& config, const Dependencies& dependencies)
    : config_(config),
      pool_(dependencies.pool),
      cache_(dependencies.cache),
      hasher_(dependencies.hasher),
      policy_(MakePolicy(config.policy)) {
  const Status status = Validate(config);
  DSA_CHECK(status.ok(), "Scheduler: {}", status.error().message);
  DSA_CHECK(hasher_.tokens_per_block() == pool_.tokens_per_block(),
            "Scheduler: {} tokens are hashed together, a block has {}", hasher_.tokens_per_block(),
            pool_.tokens_per_block());
  const std::int64_t slots = config_.sequences_max + config_.waiting_max;
  sequences_.resize(slots);
  free_slots_.reserve(slots);
  for (std::int64_t slot = slots - 1; slot >= 0; --slot) {
    free_slots_.push_back(static_cast<std::int32_t>(slot));
  }
  running_.reserve(slots);
  waiting_.reserve(slots);
  for (auto& rows : rows_by_path_) {
    rows.reserve(config_.sequences_max);  // a sequence has at most one row a path
  }
  plan_.rows.reserve(rows_by_path_.size() * config_.sequences_max);
  plan_.sample_rows.reserve(config_.sequences_max);
  plan_.writes.reserve(config_.step_tokens_max);
}

Status Scheduler::CheckFits(std::int64_t prompt_tokens, std::int64_t max_tokens) const {
  const std::int64_t prompt_max = config_.context_tokens_max - (max_tokens > 0 ? 1 : 0);
  if (prompt_tokens > prompt_max) {
    return InvalidArgument(
        fmt::format("prompt has {} tokens, limit {}", prompt_tokens, prompt_max));
  }
  if (max_tokens > config_.context_tokens_max - prompt_tokens) {
    return InvalidArgument(
        fmt::format("prompt has {} tokens and max_tokens is {}, the context has {}", prompt_tokens,
                    max_tokens, config_.context_tokens_max));
  }
  const std::int64_t need = BlocksFor(prompt_tokens + std::max<std::int64_t>(1, max_tokens) - 1);
  if (need > pool_.blocks()) {
    return InvalidArgument(
        fmt::format("prompt has {} tokens and max_tokens is {}: they need {} cache blocks of {} "
                    "tokens, the server has {}",
                    prompt_tokens, max_tokens, need, pool_.tokens_per_block(), pool_.blocks()));
  }
  return {};
}

std::int32_t Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  DSA_CHECK(!free_slots_.empty(), "Scheduler: more than {} sequences are live", slots());
  const std::int32_t slot = free_slots_.back();
  free_slots_.pop_back();
  sequence->slot_ = slot;
  sequence->id_ = SequenceId{sequences_added_};
  ++sequences_added_;
  Insert(waiting_, sequence.get());
  sequences_[slot] = std::move(sequence);
  return slot;
}

// A block of growth for each sequence that may need one next.
std::int64_t Scheduler::SpareBlocks() const {
  return std::count_if(running_.begin(), running_.end(),
                       [](const Sequence* sequence) { return !sequence->fully_reserved_; });
}

bool Scheduler::NeedsFullReservation(const Sequence& sequence) const {
  return config_.reservation == ReservationMode::kFull ||
         sequence.preemptions_ >= config_.preemptions_max;
}

// What a sequence must hold before it starts.
std::int64_t Scheduler::BlocksToStart(const Sequence& sequence) const {
  return BlocksFor(NeedsFullReservation(sequence) ? sequence.computed_max() : sequence.tokens());
}

// Of tokens from position `first` on, how many have a log-probability of the next to report: once,
// before the first token is generated.
std::int64_t Scheduler::PromptLogprobs(const Sequence& sequence, std::int64_t first,
                                       std::int64_t tokens) {
  if (sequence.generated() > 0 || !sequence.request_.prompt_logprobs.has_value()) {
    return 0;
  }
  return std::max<std::int64_t>(0, std::min(tokens, sequence.prompt_tokens_ - 1 - first));
}

// The most of its next tokens for which the step can hold logits.
std::int64_t Scheduler::WithinLogprobs(const Sequence& sequence, std::int64_t tokens) const {
  return PromptLogprobs(sequence, sequence.computed_, tokens) <= prompt_logprobs_left_
             ? tokens
             : prompt_logprobs_left_;
}

// Whether a sibling before it has still to compute what it could share: blocks, and the
// log-probabilities of the prompt, which their client hears before anything of the others.
bool Scheduler::AwaitsSibling(const Sequence& sequence) const {
  const std::optional<RequestId>& siblings = sequence.request_.siblings;
  if (!siblings.has_value()) {
    return false;
  }
  const std::int64_t block_tokens = pool_.tokens_per_block();
  const std::int64_t shared = (sequence.prompt_tokens_ - 1) / block_tokens * block_tokens;
  const auto computes = [&](const Sequence* other) {
    const bool reports = other->request_.prompt_logprobs.has_value() && other->generated() == 0;
    return other->request_.siblings == siblings && other->id_ < sequence.id_ &&
           (reports || other->computed_ < shared);
  };
  return std::any_of(running_.begin(), running_.end(), computes) ||
         std::any_of(waiting_.begin(), waiting_.end(), computes);
}

// Takes all blocks that the sequence must have before it starts, or none.
bool Scheduler::TryAdmit(Sequence& sequence, MonotonicUs now_us) {
  const std::int64_t spare = SpareBlocks();
  const std::int64_t room = pool_.available_blocks() - spare;
  if (blocked_ == sequence.id_ && room <= blocked_room_) {
    return false;
  }
  const bool full = NeedsFullReservation(sequence);
  const std::int64_t need = BlocksToStart(sequence);
  if (!ComputesWholePrompt(sequence.request_)) {
    // The last token is always computed: somebody must make its logits.
    const std::int64_t blocks_max = (sequence.tokens() - 1) / pool_.tokens_per_block();
    cache_.Match(sequence.token_ids(), blocks_max, sequence.chain_, sequence.blocks_);
  }
  // Only now: the blocks that were found are referenced and no longer available.
  if (need - sequence.blocks_.blocks() + spare > pool_.available_blocks()) {
    ReleaseBlocks(sequence);
    blocked_ = sequence.id_;
    blocked_room_ = room;
    return false;
  }
  sequence.computed_ = sequence.blocks_.capacity_tokens();
  while (sequence.blocks_.blocks() < need) {
    auto block = pool_.TryAllocate();
    DSA_CHECK(block.has_value(), "Scheduler: a block that was counted is not there");
    sequence.blocks_.Append(*std::move(block));
  }
  sequence.fully_reserved_ = full;
  if (!sequence.first_scheduled_us_.has_value()) {
    sequence.first_scheduled_us_ = now_us;
    sequence.cache_hit_tokens_ = sequence.computed_;
    sequence.masked_until_ = MaskedUntil(sequence);
  }
  return true;
}

// Starts a waiting sequence; before those ahead of it only where the first of them could still
// start.
bool Scheduler::TryPass(Sequence& sequence, MonotonicUs now_us) {
  const Sequence& first = *waiting_.front();
  const bool passes = &first != &sequence;
  if (passes) {
    const std::int64_t need = BlocksToStart(sequence) + 1 + BlocksToStart(first);
    if (static_cast<std::int64_t>(running_.size()) + 2 > config_.sequences_max ||
        need + SpareBlocks() > pool_.available_blocks()) {
      return false;
    }
  }
  if (!TryAdmit(sequence, now_us)) {
    return false;
  }
  Start(sequence)->passed_ = passes;
  return true;
}

// A sequence that was admitted.
Sequence* Scheduler::Start(Sequence& sequence) {
  Erase(waiting_, &sequence);
  sequence.state_ = SequenceState::kRunning;
  sequence.passed_ = false;
  Insert(running_, &sequence);
  return &sequence;
}

// Room for one more token; preempts from the end of the order.  False where the sequence itself
// was the one to go.
bool Scheduler::Grow(Sequence& sequence) {
  while (sequence.blocks_.capacity_tokens() < sequence.tokens()) {
    auto block = pool_.TryAllocate();
    if (block.has_value()) {
      sequence.blocks_.Append(*std::move(block));
      continue;
    }
    const auto victim = std::find_if(running_.rbegin(), running_.rend(),
                                     [](const Sequence* s) { return !s->fully_reserved_; });
    DSA_CHECK(victim != running_.rend(), "Scheduler: sequence {} needs a block and has its reserve",
              Value(sequence.id_));
    const bool self = *victim == &sequence;
    Preempt(**victim);
    if (self) {
      return false;
    }
  }
  return true;
}

void Scheduler::Preempt(Sequence& sequence) {
  ReleaseBlocks(sequence);
  Erase(running_, &sequence);
  sequence.computed_before_ = std::max(sequence.computed_before_, sequence.computed_);
  sequence.computed_ = 0;
  sequence.state_ = SequenceState::kWaiting;
  ++sequence.preemptions_;
  ++preemptions_;
  Insert(waiting_, &sequence);
}

void Scheduler::ReleaseBlocks(Sequence& sequence) {
  sequence.blocks_.Clear();
  sequence.chain_.linked = 0;
  sequence.chain_.last_publication = 0;
}

void Scheduler::Commit(const StepPlan& plan) {
  in_flight_ = false;
  for (const StepPlan::Write& write : plan.writes) {
    DSA_CHECK(pool_.generation(write.block) == write.generation,
              "Scheduler: block {} was written as generation {} and is generation {}",
              Value(write.block), write.generation, pool_.generation(write.block));
  }
  // The rows of a sequence may come in any order of position, since they are sorted by path: all
  // have run, so that as many tokens as were counted so far lie in the cache without a gap.
  for (const StepPlan::Row& row : plan.rows) {
    Sequence* sequence = FindLive(row.sequence, row.slot);
    if (sequence == nullptr) {
      continue;
    }
    sequence->computed_ += row.tokens;
    DSA_CHECK(sequence->computed_ <= sequence->tokens(), "Scheduler: {} of {} tokens are computed",
              sequence->computed_, sequence->tokens());
    const std::int64_t full_blocks = sequence->computed_ / pool_.tokens_per_block();
    if (full_blocks > sequence->chain_.linked) {
      hasher_.Extend(sequence->token_ids(), sequence->chain_);
      cache_.Publish(sequence->token_ids(), full_blocks, sequence->chain_, sequence->blocks_);
    }
  }
}

void Scheduler::Append(std::int32_t slot, TokenId token) {
  Sequence& sequence = *sequences_[slot];
  DSA_CHECK(sequence.behind() == 0, "Scheduler: sequence {} is {} tokens behind",
            Value(sequence.id_), sequence.behind());
  DSA_CHECK(sequence.generated() < sequence.request_.stop.max_tokens,
            "Scheduler: sequence {} already has its {} tokens", Value(sequence.id_),
            sequence.generated());
  sequence.tokens_.push_back(token);
  if (sequence.adjusted_ids_ != nullptr) {
    sequence.adjusted_ids_->Count(token);
  }
}

std::unique_ptr<Sequence> Scheduler::Remove(std::int32_t slot, CachedBlocks cached_blocks) {
  DSA_CHECK(sequences_[slot] != nullptr, "Scheduler: no sequence in slot {}", slot);
  std::unique_ptr<Sequence> sequence = std::move(sequences_[slot]);
  if (cached_blocks == CachedBlocks::kForget) {
    for (const std::int32_t block : sequence->blocks_.ids()) {
      cache_.Forget(BlockId{block});
    }
  }
  ReleaseBlocks(*sequence);
  Erase(sequence->state_ == SequenceState::kRunning ? running_ : waiting_, sequence.get());
  free_slots_.push_back(slot);
  return sequence;
}

Sequence* Scheduler::FindLive(SequenceId id, std::int32_t slot) {
  Sequence* sequence = sequences_[slot].get();
  return sequence != nullptr && sequence->id_ == id ? sequence : nullptr;
}

std::int64_t Scheduler::BlocksFor(std::int64_t tokens) const {
  return (tokens + pool_.tokens_per_block() - 1) / pool_.tokens_per_block();
}

void Scheduler::Insert(std::vector<Sequence*>& order, Sequence* sequence) {
  const auto place = std::lower_bound(
      order.begin(), order.end(), sequence,
      [this](const Sequence* a, const Sequence* b) { return policy_->Before(*a, *b); });
  order.insert(place, sequence);
}

void Scheduler::Erase(std::vector<Sequence*>& order, const Sequence* sequence) {
  const auto place = std::find(order.begin(), order.end(), sequence);
  DSA_CHECK(place != order.end(), "Scheduler: sequence {} is not in its queue",
            Value(sequence->id_));
  order.erase(place);
}

void Scheduler::CheckInvariants() const {
  pool_.CheckInvariants();
  cache_.CheckInvariants();
  CheckPlan();
  std::vector<std::int32_t> references(pool_.blocks(), 0);
  std::int64_t live = 0;
  for (const auto& sequence : sequences_) {
    if (sequence == nullptr) {
      continue;
    }
    ++live;
    const bool running = sequence->state_ == SequenceState::kRunning;
    DSA_CHECK(running == (sequence->blocks_.blocks() > 0), "Scheduler: sequence {} has {} blocks",
              Value(sequence->id_), sequence->blocks_.blocks());
    DSA_CHECK(sequence->computed_ <= sequence->blocks_.capacity_tokens(),
              "Scheduler: {} tokens computed in {} blocks", sequence->computed_,
              sequence->blocks_.blocks());
    DSA_CHECK(sequence->chain_.linked <= sequence->computed_ / pool_.tokens_per_block(),
              "Scheduler: {} blocks are shared, {} tokens computed", sequence->chain_.linked,
              sequence->computed_);
    for (const std::int32_t block : sequence->blocks_.ids()) {
      ++references[block];
    }
  }
  const auto queued = static_cast<std::int64_t>(running_.size() + waiting_.size());
  DSA_CHECK(live == queued, "Scheduler: {} sequences live, {} queued", live, queued);
  for (std::int32_t block = 0; block < pool_.blocks(); ++block) {
    DSA_CHECK(references[block] == pool_.references(BlockId{block}),
              "Scheduler: {} tables hold block {}, the pool counts {}", references[block], block,
              pool_.references(BlockId{block}));
  }
}

// Its sums are those of its rows: what the step should take, and so what each request pays, are
// made of them.
void Scheduler::CheckPlan() const {
  StepWork work;
  std::int64_t tokens = 0;
  for (const StepPlan::Row& row : plan_.rows) {
    work.Add(row.path, row.first_position, row.tokens, row.samples);
    work.prompt_logprobs += row.prompt_logprobs;
    tokens += row.tokens;
  }
  DSA_CHECK(work == plan_.work, "Scheduler: the plan's work is not that of its {} rows",
            plan_.rows.size());
  DSA_CHECK(tokens == plan_.tokens && tokens <= config_.step_tokens_max,
            "Scheduler: {} tokens planned, {} in rows, at most {}", plan_.tokens, tokens,
            config_.step_tokens_max);
}

}  // namespace dsa
