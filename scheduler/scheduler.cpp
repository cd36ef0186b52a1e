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
  if (prompt_tokens >= config_.context_tokens_max) {
    return InvalidArgument(fmt::format("prompt has {} tokens, limit {}", prompt_tokens,
                                       config_.context_tokens_max - 1));
  }
  if (max_tokens > config_.context_tokens_max - prompt_tokens) {
    return InvalidArgument(
        fmt::format("prompt has {} tokens and max_tokens is {}, the context has {}", prompt_tokens,
                    max_tokens, config_.context_tokens_max));
  }
  const std::int64_t need = BlocksFor(prompt_tokens + max_tokens - 1);
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

const StepPlan& Scheduler::Plan(MonotonicUs now_us) {
  DSA_CHECK(!in_flight_, "Scheduler: a step of {} tokens is in flight", plan_.tokens);
  plan_.rows.clear();
  plan_.sample_rows.clear();
  plan_.writes.clear();
  plan_.tokens = 0;
  plan_.sequences = 0;
  for (auto& rows : rows_by_path_) {
    rows.clear();
  }
  budget_ = config_.step_tokens_max;
  const std::int64_t preemptions_before = preemptions_;
  const std::int64_t granted = GrantDecode();
  if (granted < static_cast<std::int64_t>(running_.size())) {
    GrantCatchUp();
  }
  if (preemptions_ == preemptions_before) {  // else the blocks are short: nobody new may start
    AdmitWaiting(now_us);
  }
  for (const auto& rows : rows_by_path_) {
    for (const StepPlan::Row& row : rows) {
      if (row.samples > 0) {
        plan_.sample_rows.push_back(static_cast<std::int32_t>(plan_.rows.size()));
      }
      plan_.rows.push_back(row);
    }
  }
  in_flight_ = !plan_.rows.empty();
  return plan_;
}

// One token for each sequence that has all others, so that a long prompt never holds up a reply.
// Only these need more blocks than they hold, and a victim lies behind the sequence that needs one
// (or is itself), so nothing is taken from a sequence after it was granted tokens.
// Returns how many it granted.
std::int64_t Scheduler::GrantDecode() {
  std::int64_t granted = 0;
  std::size_t index = 0;
  while (index < running_.size()) {
    Sequence& sequence = *running_[index];
    if (sequence.behind() == 1) {
      if (!Grow(sequence)) {
        continue;  // it preempted itself: the next one stands at this index now
      }
      Grant(sequence, 1);
      ++granted;
    }
    ++index;
  }
  return granted;
}

void Scheduler::GrantCatchUp() {
  for (Sequence* sequence : running_) {
    if (budget_ == 0) {
      return;
    }
    if (sequence->behind() > 1) {
      Grant(*sequence, std::min(sequence->behind(), budget_));
    }
  }
}

void Scheduler::AdmitWaiting(MonotonicUs now_us) {
  while (!waiting_.empty() && budget_ > 0 &&
         static_cast<std::int64_t>(running_.size()) < config_.sequences_max) {
    Sequence& sequence = *waiting_.front();
    if (!TryAdmit(sequence, now_us)) {
      return;
    }
    Erase(waiting_, &sequence);
    sequence.state_ = SequenceState::kRunning;
    Insert(running_, &sequence);
    Grant(sequence, std::min(sequence.behind(), budget_));
  }
}

// Takes all blocks that the sequence must have before it starts, or none.
bool Scheduler::TryAdmit(Sequence& sequence, MonotonicUs now_us) {
  std::int64_t spare = 0;  // a block of growth for each sequence that may need one next
  for (const Sequence* running : running_) {
    spare += running->fully_reserved_ ? 0 : 1;
  }
  const std::int64_t room = pool_.available_blocks() - spare;
  if (blocked_ == sequence.id_ && room <= blocked_room_) {
    return false;
  }
  const bool full = config_.reservation == ReservationMode::kFull ||
                    sequence.preemptions_ >= config_.preemptions_max;
  const std::int64_t need = BlocksFor(full ? sequence.computed_max() : sequence.tokens());
  if (sequence.request_.prompt_logits == PromptLogits::kNone) {
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

void Scheduler::Grant(Sequence& sequence, std::int64_t tokens) {
  const std::int64_t end = sequence.computed_ + tokens;
  DSA_CHECK(tokens > 0 && tokens <= budget_, "Scheduler: {} tokens granted of {}", tokens, budget_);
  DSA_CHECK(end <= sequence.blocks_.capacity_tokens(), "Scheduler: position {} beyond {} blocks",
            end - 1, sequence.blocks_.blocks());
  for (std::int64_t position = sequence.computed_; position < end;) {
    const std::int64_t row_end = std::min(end, PathEnd(sequence, position));
    const AttentionPath path = PathAt(sequence, position);
    rows_by_path_[static_cast<std::size_t>(path)].push_back(
        {.sequence = sequence.id_,
         .slot = sequence.slot_,
         .first_position = position,
         .tokens = row_end - position,
         .samples = row_end == sequence.tokens() ? 1 : 0,
         .path = path});
    position = row_end;
  }
  RecordWrites(sequence, end);
  budget_ -= tokens;
  plan_.tokens += tokens;
  ++plan_.sequences;
}

// The blocks that hold the sequence's positions from computed() to `end`: its own alone.
void Scheduler::RecordWrites(const Sequence& sequence, std::int64_t end) {
  const std::int64_t block_tokens = pool_.tokens_per_block();
  for (std::int64_t index = sequence.computed_ / block_tokens; index * block_tokens < end;
       ++index) {
    const BlockId block = sequence.blocks_.block(index);
    plan_.writes.push_back({.block = block, .generation = pool_.WritableGeneration(block)});
  }
}

// Asked when the sequence first runs.  Only its prompt, since one row a step is not worth expanding
// keys for; nor are a few rows behind a prefix hit.
std::int64_t Scheduler::MaskedUntil(const Sequence& sequence) const {
  const std::int64_t end = std::min(config_.masked_mha_until, sequence.prompt_tokens_);
  return end - sequence.computed_ >= config_.masked_rows_min ? end : 0;
}

AttentionPath Scheduler::PathAt(const Sequence& sequence, std::int64_t position) const {
  const bool all = config_.attention == AttentionMode::kDense || position + 1 <= config_.index_topk;
  if (position < sequence.masked_until_) {
    return all ? AttentionPath::kMaskedAll : AttentionPath::kMaskedSelected;
  }
  return all ? AttentionPath::kDense : AttentionPath::kSparse;
}

// The first position behind `position` with another path.
std::int64_t Scheduler::PathEnd(const Sequence& sequence, std::int64_t position) const {
  std::int64_t end = config_.context_tokens_max;
  if (position < sequence.masked_until_) {
    end = sequence.masked_until_;
  }
  if (config_.attention == AttentionMode::kSparse && position < config_.index_topk) {
    end = std::min(end, config_.index_topk);
  }
  return end;
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

const Sequence* Scheduler::Find(SequenceId id, std::int32_t slot) const {
  const Sequence* sequence = sequences_[slot].get();
  return sequence != nullptr && sequence->id_ == id ? sequence : nullptr;
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

}  // namespace dsa
