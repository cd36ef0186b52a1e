// How long a request may wait (I-9), as laws of every plan and as a bound in steps.
//
// Laws of a plan:
//   order    who starts to run comes before everybody who waits: by priority under that policy,
//            then by arrival, where a preempted request keeps the place it had
//   replies  a running sequence that has all tokens but one gets it in every step
//   prompts  those that catch up do so in order: nobody gets a token before the one ahead has all
//   siblings nobody starts while a sibling before it has to compute blocks that both can share, or
//            log-probabilities of the prompt
//   logits   a prompt whose log-probabilities are reported gets all logits that the step has left,
//            and holds up nobody behind it: such a step computes at least so many tokens of P
//   work     somebody waits only where the budget is used up, all places are taken, the blocks do
//            not suffice for the first in order, or a preemption has just shown them to be short;
//            where the first waits for a sibling or for logits, others may pass it that need not,
//            where it could still start
// Where steps have a budget of time (time_laws.h) there is one exception: while the first prompt is
// held back, shorter ones may overtake it, and start before others where the first of those could
// still start.  What they get is bounded in time.
//
// From these follows a bound.  Let a request begin to wait, as new or as preempted, and P be the
// sequences that run then or wait ahead of it, with those that arrive later and go ahead of it
// (none under first come).  While it waits nobody outside P runs.  Each step is one of three kinds:
//   full           R = step_tokens_max tokens are computed, all of P.  P computes its remaining
//                  tokens once, and all of a sequence's again after each preemption that it can
//                  still suffer (K: preemptions_max less those it had; 0 with a full reservation).
//   preempting     at most the sum of K over P.
//   for siblings   the first in order waits for a sibling, which gets all that it lacks: at most
//                  once for each of P that has siblings and each time that it was preempted.
//   other          every running sequence gets a token of its reply.  Either all places are taken,
//                  or the first in order lacks blocks: with at most B blocks a sequence, `running`
//                  sequences hold running * B, one more block each is spared, so
//                  blocks - running * B < B + running.  So at least
//                  G = min(sequences_max, (blocks - B) / (B + 1) + 1) run, while P has
//                  D = sum of (max_tokens - generated) tokens of replies left.
//
//   steps of waiting <= W / R + sum K + D / G,  W = sum (tokens left + K * all tokens)
//
// Where steps have a budget of time, a step that is full of time computes min(16, R) tokens of P at
// least, and stands in W / R for R; P includes those that overtake the request, from when they do.
// In model time: each such step takes its target but for what fits nowhere, replies take what they
// cost, and of the rest at most an eighth, half a target and a token go to others than P.
//
// Likewise for a sequence that runs and still catches up.  Every such step is full; at most
// sequences_max - 1 of its tokens go to replies and the rest to the sequence and those ahead of it:
//
//   steps to catch up <= (own tokens + those ahead) / (R - sequences_max + 1) + 1
//
// (again min(16, ..) for the divisor with a budget of time), where the 1 is for the step in which
// it gets its last ones, which need not be full. In both the step in which it begins is not
// counted.
#pragma once

#include "scheduler/scheduler.h"
#include "tests/sim/sim_config.h"
#include "tests/sim/time_laws.h"

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

namespace dsa::sim {

inline std::int64_t IdOf(const Sequence& sequence) {
  return Value(sequence.request().id);
}

class WaitLaws final {
 public:
  WaitLaws(const SimConfig& config, TimeLaws& times) : config_(config), times_(times) {}

  // Between Plan and Commit.  granted[slots]: the tokens that the batch computes for each slot.
  void CheckPlan(const Scheduler& scheduler, const BlockPool& pool,
                 std::span<const std::int64_t> granted);

  // The longest of all waits of at least ten steps' bound, in percent of its bound.
  std::int64_t longest_wait_percent() const { return longest_wait_percent_; }

 private:
  // One request since it began to wait or to run, whichever was last.
  struct Stay {
    SequenceState state{};
    std::int32_t preemptions = 0;
    std::int64_t steps = 0;  // so far, without the first
    // Sums over those ahead.
    std::int64_t tokens_left = 0;
    std::int64_t preemptions_left = 0;
    std::int64_t replies_left = 0;
    std::int64_t catch_up_tokens = 0;
    std::int64_t blocks_max = 0;  // of one sequence, its own included
    // What TimeLaws had counted when it began.
    double prompts_us = 0;
    double overtaken_us = 0;
  };

  bool Before(const Sequence& a, const Sequence& b) const;
  std::int64_t BlocksFor(std::int64_t tokens) const;
  std::int64_t PreemptionsLeft(const Sequence& sequence) const;
  void AddAhead(const Sequence& ahead, Stay& stay) const;
  Stay BeginStay(const Sequence& sequence, const Scheduler& scheduler) const;
  std::int64_t BoundOf(const Stay& stay) const;
  bool IsFresh(const Sequence& sequence) const;

  void CheckOrder(const Scheduler& scheduler) const;
  std::vector<PromptGrant> PromptsOf(const Scheduler& scheduler,
                                     std::span<const std::int64_t> granted) const;
  void CheckGrants(const Scheduler& scheduler, const BlockPool& pool,
                   std::span<const std::int64_t> granted, bool preempted);
  void CheckNewcomers(const Scheduler& scheduler, const BlockPool& pool,
                      const std::vector<PromptGrant>& prompts, bool preempted) const;
  void CheckPassing(const Scheduler& scheduler, const BlockPool& pool) const;
  static const PromptGrant* FirstWithLogits(const std::vector<PromptGrant>& prompts);
  std::int64_t LogitsLeft(const Scheduler& scheduler, std::span<const std::int64_t> granted) const;
  bool CannotStart(const Sequence& waiting, const Scheduler& scheduler,
                   std::span<const std::int64_t> granted) const;
  bool FirstCannotStart(const Scheduler& scheduler, std::span<const std::int64_t> granted) const;
  const Sequence* FirstWaiting(const Scheduler& scheduler,
                               const std::function<bool(const Sequence&)>& is_wanted) const;
  static std::int64_t SpareBlocks(const Scheduler& scheduler);
  std::int64_t BlocksToStart(const Sequence& sequence) const;
  bool AwaitsSibling(const Sequence& sequence, const Scheduler& scheduler) const;
  void CheckSiblings(const Scheduler& scheduler) const;
  void CheckWork(const Scheduler& scheduler, const BlockPool& pool,
                 std::span<const std::int64_t> granted) const;
  void CheckBounds(const Scheduler& scheduler);

  const SimConfig& config_;
  TimeLaws& times_;
  std::map<std::int64_t, Stay> stays_;  // by request id; of live requests, as of the last plan
  std::int64_t budget_left_ = 0;        // of the plan that is checked
  std::int64_t longest_wait_percent_ = 0;
};

}  // namespace dsa::sim
