// What the time of steps is given to (I-13), in worlds whose steps have a budget of it.
//
// Time is the model's: what the scheduler's cost model, as it was when the step was planned, says
// of the plan's rows.  Laws of a plan:
//   budget   beyond the first 16 tokens of prompts in order, the newcomers' eighth of a target and
//            a token of each, the step takes no more than its target, four where nothing decodes
//   minimum  where a prompt is held back, prompts in order get 16 tokens, or what the token budget
//            leaves of that
//   work     a prompt is held back only where its next token does not fit into the time, the
//            tokens, or twice the rows of its path that any step has had
//   start    so are the first rows of a path, and the first logits of prompts: at most 16
//   share    since any request began to wait, who overtook a prompt got at most an eighth of the
//            time of prompts, half a target and a token; and gets it where there is such a one
// Laws of the world:
//   truth    steps take what the model says they take, but for some
#pragma once

#include "cache/block_pool.h"
#include "scheduler/scheduler.h"
#include "tests/sim/sim_config.h"

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

namespace dsa::sim {

// A prompt of a plan, in the order in which prompts are due.
struct PromptGrant {
  const Sequence* sequence;
  std::int64_t tokens;    // 0: it runs and gets none
  std::int64_t possible;  // of those that it lacks, with the logits that those before it left
  bool overtakes;         // one before it did not get all that were possible
};

// Rows of its prompt whose logits a sequence's next tokens take.
std::int64_t LogitsNeeded(const Sequence& sequence, std::int64_t tokens);

class TimeLaws final {
 public:
  using PathOf = std::function<AttentionPath(const Sequence& sequence, std::int64_t position)>;
  TimeLaws(const SimConfig& config, PathOf path_of)
      : config_(config), path_of_(std::move(path_of)) {
    rows_max_.fill(kFirstRows);
  }

  // Before the first step.
  void Observe(const StepCostModel& costs) { costs_ = &costs; }

  // Between Plan and Commit.
  void CheckPlan(const Scheduler& scheduler, const std::vector<PromptGrant>& prompts,
                 std::int64_t decoding, std::int64_t budget_left);
  // Whether that plan had nothing left for a prompt that waits.
  bool is_used_up() const { return is_used_up_; }
  // Whether newcomers have something left of their share, and got nothing of that plan although the
  // first prompt was held back.
  bool newcomers_wait() const { return newcomers_wait_; }

  // What the step in flight takes, in truth.
  double TrueUs(std::int64_t step, std::int64_t noise_percent) const;
  const StepWork& work() const { return work_; }  // of the step's plan
  // A step of so much work was measured, on this rank or another.
  void Learn(const StepWork& measured);
  // The step has taken this rank so long; of one that had something to do.
  void CheckDuration(std::int64_t elapsed_us);
  void CheckTruth() const;

  // Model time so far that went to prompts, and to those that overtook one.
  double prompts_us() const { return prompts_us_; }
  double overtaken_us() const { return overtaken_us_; }
  // Whether so much since then is a fair share.
  void CheckShare(double prompts_us_then, double overtaken_us_then) const;

 private:
  static constexpr std::int64_t kFirstRows = 16;

  // What a plan gives to prompts.
  struct Shares {
    const PromptGrant* held_back = nullptr;  // the first that does not get all that is possible
    double prompts_us = 0;
    double overtaking_us = 0;
    double spared_us = 0;              // of tokens that need not fit
    std::int64_t in_order = 0;         // tokens
    std::int64_t short_of_logits = 0;  // tokens of those before held_back that were
    std::int64_t overtaking = 0;       // prompts
  };
  Shares Count(const std::vector<PromptGrant>& prompts);
  void CheckRows(const StepWork& replies, const Shares& shares) const;
  StepWork WorkOf(const Sequence& sequence, std::int64_t tokens) const;
  double AddedUs(const Sequence& sequence, std::int64_t tokens) const;
  bool FitsRows(const Sequence& sequence, std::int64_t tokens) const;

  const SimConfig& config_;
  PathOf path_of_;
  const StepCostModel* costs_ = nullptr;
  std::array<std::int64_t, kAttentionPaths> rows_max_{};
  std::int64_t logits_max_ = kFirstRows;  // of prompts

  // The step in flight.
  StepWork work_;
  double estimate_us_ = 0;
  bool is_used_up_ = false;
  bool newcomers_wait_ = false;

  double prompts_us_ = 0;
  double overtaken_us_ = 0;
  double credit_us_ = 0;
  double token_us_max_ = 0;  // of one that overtook
  std::int64_t steps_ = 0;
  std::int64_t wrong_ = 0;  // of which the model says something else
};

}  // namespace dsa::sim
