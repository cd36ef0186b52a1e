// Decides what each step computes: continuous batching without phases.  Every sequence is some
// tokens behind and a step lets it catch up, within a token budget.  Pure code: time is an
// argument, and nothing here knows devices, text or clients.  Engine thread only, but for
// CheckFits.
//
//   scheduler.Add(sequence);                     // waiting
//   const StepPlan& plan = scheduler.Plan(now, costs);  // admits, preempts, grants tokens
//   ... run the plan ...
//   scheduler.Commit(plan);                      // keys are in the cache; full blocks shareable
//   scheduler.Append(slot, token);               // each sampled token
//   scheduler.Remove(slot, ...);                 // finished, for whatever reason
//
// Between Plan and Commit the step is in flight.  Sequences may be removed meanwhile, but no block
// is given away, since only Plan takes blocks and the next one comes after Commit: a late write of
// a removed sequence lands in a block that nobody else holds.  Both ends of this are checked.
//
// Order: running sequences first, those that decode before those that catch up, then waiting ones
// as the policy orders them and while blocks last.
//
// Siblings are ordinary sequences but for one thing: the first in order computes the prompt, and
// the others start when its full blocks can be shared; the rest of the prompt each computes itself.
//
// With SchedulerConfig::step_time_target_us a step has a budget of time too, by a cost model that
// is an input of the plan.  Replies always advance; prompts get what time is left, at least 16
// tokens. While a prompt uses that time up, shorter ones behind it share an eighth of it: these
// alone may pass others that wait, and only where the first of those could still start.
#pragma once

#include "cache/block_pool.h"
#include "cache/prefix_cache.h"
#include "common/clock.h"
#include "common/status.h"
#include "scheduler/policy.h"
#include "scheduler/rank_offer.h"
#include "scheduler/scheduler_config.h"
#include "scheduler/sequence.h"
#include "scheduler/step_cost.h"
#include "scheduler/step_plan.h"

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace dsa {

// What becomes of the prefix cache's entries for a removed sequence's blocks.
enum class CachedBlocks : std::uint8_t {
  kKeep,
  kForget,  // its keys may be faulty: nobody shall share them
};

class Scheduler final {
 public:
  struct Dependencies {
    BlockPool& pool;
    PrefixCache& cache;
    const PrefixHasher& hasher;
  };
  // `config` is valid.  All memory of the step path is allocated here.
  Scheduler(const SchedulerConfig& config, const Dependencies& dependencies);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // INVALID_ARGUMENT with need and have: a request that not even an empty cache can hold, or longer
  // than the context.  Thread-safe: reads constants only.
  Status CheckFits(std::int64_t prompt_tokens, std::int64_t max_tokens) const;

  // What this data rank, of several, could do for a sequence that CheckFits accepted and that is
  // at none yet; between Commit and Plan.
  RankOffer OfferFor(const Sequence& sequence);
  // Whether another answer to the same prompt is here.
  bool HoldsSiblingOf(const Sequence& sequence) const;

  // Queues a sequence that CheckFits accepted; returns its slot.  At most slots() are live.
  std::int32_t Add(std::unique_ptr<Sequence> sequence);

  // The next step; no rows where nothing can run.  Valid until the next call.  CHECK-fails while a
  // step is in flight.  What it decides follows from the calls so far and their arguments alone.
  const StepPlan& Plan(MonotonicUs now_us, const StepCostModel& costs);

  // The step in flight; null where none is.
  const StepPlan* in_flight() const { return in_flight_ ? &plan_ : nullptr; }

  // The plan's rows were computed and their writes have landed; those of sequences removed since
  // are skipped.
  void Commit(const StepPlan& plan);

  // The next token of a running sequence that has none behind.
  void Append(std::int32_t slot, TokenId token);

  // Ends a live sequence and releases its blocks.
  std::unique_ptr<Sequence> Remove(std::int32_t slot, CachedBlocks cached_blocks);

  // [slots()] by slot; null where none is live.
  std::span<const std::unique_ptr<Sequence>> sequences() const { return sequences_; }
  // Null where it was removed.
  const Sequence* Find(SequenceId id, std::int32_t slot) const {
    const Sequence* const sequence = sequences_[slot].get();
    return sequence != nullptr && sequence->id() == id ? sequence : nullptr;
  }
  bool has_free_slot() const { return !free_slots_.empty(); }
  std::int32_t slots() const { return static_cast<std::int32_t>(sequences_.size()); }
  std::span<Sequence* const> running() const { return running_; }  // in policy order
  std::span<Sequence* const> waiting() const { return waiting_; }  // in policy order
  const SchedulerConfig& config() const { return config_; }
  std::int64_t preemptions() const { return preemptions_; }

  // CHECK-fails unless references, states, progress and the last plan agree.  O(blocks +
  // sequences).
  void CheckInvariants() const;

 private:
  struct Planning {
    MonotonicUs now_us;
    const StepCostModel& costs;
    bool may_start;
  };
  void CheckPlan() const;
  std::int64_t GrantDecode();
  void CountReplies();
  void GrantPrompts(const Planning& planning, std::int64_t decoding);
  void GrantShortOfLogits(const Planning& planning);
  void GrantNewcomers(const Planning& planning);
  void GrantInOrder(const Planning& planning);
  double GrantPrompt(Sequence& sequence, std::int64_t tokens, const StepCostModel& costs);
  Sequence* ShortestNewcomer(const Sequence& older, bool may_start) const;
  Sequence* NextToStart() const;
  bool ComesBefore(const Sequence& waiting, const Sequence& running) const;
  std::int64_t TokensWithin(const Sequence& sequence, std::int64_t wanted, double time_us,
                            const StepCostModel& costs) const;
  template <typename Visit>
  void VisitRows(const Sequence& sequence, std::int64_t tokens, const Visit& visit) const;
  StepWork WorkOf(const Sequence& sequence, std::int64_t tokens) const;
  bool IsPlanned(const Sequence& sequence) const { return sequence.planned_ == plans_; }
  const CachedPrefix& CachedPrefixOf(const Sequence& sequence, FoundPrefix& found) const;
  std::int64_t TokensOwed();
  std::int64_t SpareBlocks() const;
  bool NeedsFullReservation(const Sequence& sequence) const;
  std::int64_t BlocksToStart(const Sequence& sequence) const;
  bool AwaitsSibling(const Sequence& sequence) const;
  static std::int64_t PromptLogprobs(const Sequence& sequence, std::int64_t first,
                                     std::int64_t tokens);
  std::int64_t WithinLogprobs(const Sequence& sequence, std::int64_t tokens) const;
  bool TryAdmit(Sequence& sequence, MonotonicUs now_us);
  bool TryPass(Sequence& sequence, MonotonicUs now_us);
  Sequence* Start(Sequence& sequence);
  bool Grow(Sequence& sequence);
  void Preempt(Sequence& sequence);
  void Grant(Sequence& sequence, std::int64_t tokens);
  void GrantReply(Sequence& sequence);
  void AddRow(const Sequence& sequence, AttentionPath path, std::int64_t first, std::int64_t tokens,
              std::int32_t samples);
  void RecordWrite(const Sequence& sequence, std::int64_t index);
  void CountGrant(Sequence& sequence, std::int64_t tokens);
  Sequence* FindLive(SequenceId id, std::int32_t slot);
  static void ReleaseBlocks(Sequence& sequence);
  std::int64_t MaskedUntil(const Sequence& sequence) const;
  AttentionPath PathAt(const Sequence& sequence, std::int64_t position) const;
  std::int64_t PathEnd(const Sequence& sequence, std::int64_t position) const;
  std::int64_t BlocksFor(std::int64_t tokens) const;
  void Insert(std::vector<Sequence*>& order, Sequence* sequence);
  static void Erase(std::vector<Sequence*>& order, const Sequence* sequence);

  const SchedulerConfig config_;
  BlockPool& pool_;
  PrefixCache& cache_;
  const PrefixHasher& hasher_;
  std::unique_ptr<SchedulingPolicy> policy_;

  std::vector<std::unique_ptr<Sequence>> sequences_;  // by slot
  std::vector<std::int32_t> free_slots_;
  std::vector<Sequence*> running_;
  std::vector<Sequence*> waiting_;
  std::int64_t sequences_added_ = 0;
  std::int64_t preemptions_ = 0;

  // The step being planned or in flight.
  bool in_flight_ = false;
  std::int64_t plans_ = 0;  // so far
  std::int64_t budget_ = 0;
  std::int64_t prompt_logprobs_left_ = 0;
  double time_left_us_ = 0;         // below 0 where it is exceeded
  double prompts_us_ = 0;           // given to prompts
  std::int64_t prompt_tokens_ = 0;  // given to prompts in order
  std::array<std::vector<StepPlan::Row>, kAttentionPaths> rows_by_path_;  // by AttentionPath
  StepPlan plan_;

  double newcomers_credit_us_ = 0;  // of their share, what they have not used

  // The head of the queue that did not fit and the room there was: not tried again, and its prefix
  // not looked up again, until there is more.
  SequenceId blocked_{-1};
  std::int64_t blocked_room_ = 0;

  FoundPrefix offered_;  // of the request that OfferFor was asked about last
};

}  // namespace dsa
