#include "tests/sim/time_laws.h"

#include <algorithm>

#include <fmt/format.h>

namespace dsa::sim {
namespace {

constexpr double kRounding = 1e-3;  // microseconds
constexpr double kShare = 1.0 / 8;
constexpr double kAlone = 4;
constexpr std::int64_t kRowsPerExpandedKey = 171;  // a masked row is 768 products, a key 131,072

}  // namespace

// Counted row by row, as the scheduler does not.
StepWork TimeLaws::WorkOf(const Sequence& sequence, std::int64_t tokens) const {
  StepWork work;
  const std::int64_t end = sequence.computed() + tokens;
  for (std::int64_t position = sequence.computed(); position < end; ++position) {
    const AttentionPath path = path_of_(sequence, position);
    const auto index = static_cast<std::size_t>(path);
    ++work.rows[index];
    work.keys[index] += position + 1;
    const bool last = position + 1 == end || path_of_(sequence, position + 1) != path;
    work.keys[index] += last && IsMasked(path) ? kRowsPerExpandedKey * (position + 1) : 0;
  }
  const bool samples = tokens > 0 && end == sequence.tokens();
  work.samples = samples && sequence.request().stop.max_tokens > 0 ? 1 : 0;
  work.prompt_logprobs = LogitsNeeded(sequence, tokens);
  return work;
}

std::int64_t LogitsNeeded(const Sequence& sequence, std::int64_t tokens) {
  if (!sequence.request().prompt_logprobs.has_value() || sequence.generated() > 0) {
    return 0;
  }
  // The prompt's last token says nothing of the prompt.
  const std::int64_t left = sequence.prompt_tokens() - 1 - sequence.computed();
  return std::clamp<std::int64_t>(left, 0, tokens);
}

// What a prompt's grant adds to the step; `tokens` may be 0.
double TimeLaws::AddedUs(const Sequence& sequence, std::int64_t tokens) const {
  return costs_->AddedUs(WorkOf(sequence, tokens));
}

// Whether so many tokens more would not be too many rows of a path, in the step at hand.
bool TimeLaws::FitsRows(const Sequence& sequence, std::int64_t tokens) const {
  const std::int64_t first = sequence.computed();
  const auto path = static_cast<std::size_t>(path_of_(sequence, first + tokens - 1));
  const std::int64_t logits = LogitsNeeded(sequence, tokens) - LogitsNeeded(sequence, tokens - 1);
  return work_.rows[path] + 1 <= rows_max_[path] &&
         (logits == 0 || work_.prompt_logprobs + 1 <= logits_max_);
}

TimeLaws::Shares TimeLaws::Count(const std::vector<PromptGrant>& prompts) {
  Shares shares;
  for (const PromptGrant& prompt : prompts) {
    if (shares.held_back == nullptr && prompt.tokens < prompt.possible) {
      shares.held_back = &prompt;
    }
    if (shares.held_back == nullptr && prompt.possible < prompt.sequence->behind()) {
      shares.short_of_logits += prompt.tokens;
    }
    if (prompt.tokens == 0) {
      continue;
    }
    const Sequence& sequence = *prompt.sequence;
    work_.Add(WorkOf(sequence, prompt.tokens));
    const double own_us = AddedUs(sequence, prompt.tokens);
    const double token_us = own_us - AddedUs(sequence, prompt.tokens - 1);
    shares.prompts_us += own_us;
    if (prompt.overtakes) {
      ++shares.overtaking;
      shares.overtaking_us += own_us;
      shares.spared_us += token_us;
      token_us_max_ = std::max(token_us_max_, token_us);
    } else {
      const std::int64_t free =
          std::clamp<std::int64_t>(kFirstRows - shares.in_order, 1, prompt.tokens);
      shares.spared_us += std::max(token_us, AddedUs(sequence, free));
      shares.in_order += prompt.tokens;
    }
  }
  return shares;
}

void TimeLaws::CheckPlan(const Scheduler& scheduler, const std::vector<PromptGrant>& prompts,
                         std::int64_t decoding, std::int64_t budget_left) {
  work_ = {};
  for (const Sequence* sequence : scheduler.running()) {
    if (sequence->behind() == 1 &&
        std::none_of(prompts.begin(), prompts.end(),
                     [&](const PromptGrant& prompt) { return prompt.sequence == sequence; })) {
      work_.Add(WorkOf(*sequence, 1));
    }
  }
  const auto target_us = static_cast<double>(config_.scheduler.step_time_target_us);
  const StepWork replies = work_;
  const double replies_left_us =
      (decoding > 0 ? 1 : kAlone) * target_us - costs_->EstimateUs(replies);
  const Shares shares = Count(prompts);
  const double left_us = replies_left_us - shares.prompts_us;
  estimate_us_ = costs_->EstimateUs(work_);

  const double over_us = shares.prompts_us - std::max(0.0, replies_left_us);
  SIM_CHECK(over_us <= shares.spared_us + kShare * target_us + kRounding,
            fmt::format("a step takes {} us more than it may", over_us));
  const std::int64_t due = std::min(kFirstRows, config_.scheduler.step_tokens_max - decoding);
  SIM_CHECK(shares.held_back == nullptr || shares.in_order >= due,
            fmt::format("a prompt is held back beside {} tokens of prompts", shares.in_order));
  CheckRows(replies, shares);
  if (shares.held_back != nullptr && budget_left > 0) {
    const Sequence& sequence = *shares.held_back->sequence;
    const std::int64_t tokens = shares.held_back->tokens;
    const double next_us = AddedUs(sequence, tokens + 1) - AddedUs(sequence, tokens);
    SIM_CHECK(next_us > left_us - kRounding || !FitsRows(sequence, tokens + 1),
              fmt::format("request {} is held back although there is time",
                          Value(sequence.request().id)));
  }
  is_used_up_ = shares.held_back != nullptr || (left_us <= kRounding && shares.in_order >= due);
  newcomers_wait_ =
      shares.held_back != nullptr && shares.overtaking == 0 && credit_us_ > kRounding &&
      config_.scheduler.step_tokens_max - decoding - shares.short_of_logits > kFirstRows;
  prompts_us_ += shares.prompts_us;
  overtaken_us_ += shares.overtaking_us;
  credit_us_ = std::min(credit_us_ + kShare * shares.prompts_us - shares.overtaking_us,
                        kShare * kAlone * target_us);
}

// Of prompts: the first 16, a token of each that overtook and one more are free.
void TimeLaws::CheckRows(const StepWork& replies, const Shares& shares) const {
  for (std::size_t path = 0; path < kAttentionPaths; ++path) {
    const std::int64_t rows = work_.rows[path] - replies.rows[path];
    const std::int64_t tried = std::max<std::int64_t>(0, rows_max_[path] - replies.rows[path]);
    SIM_CHECK(rows <= tried + kFirstRows + shares.overtaking + 1,
              fmt::format("{} rows of a path of which {} were tried", rows, rows_max_[path] / 2));
  }
  SIM_CHECK(work_.prompt_logprobs <= logits_max_ + kFirstRows + shares.overtaking + 1,
            fmt::format("{} logits of prompts of which {} were tried", work_.prompt_logprobs,
                        logits_max_ / 2));
}

double TimeLaws::TrueUs(std::int64_t step, std::int64_t noise_percent) const {
  const TrueCosts& costs = config_.costs;
  double us = costs.step_us + costs.sample_us * static_cast<double>(work_.samples) +
              costs.prompt_logprob_us * static_cast<double>(work_.prompt_logprobs);
  for (std::size_t path = 0; path < kAttentionPaths; ++path) {
    us += costs.row_us[path] * static_cast<double>(work_.rows[path]) +
          costs.key_us[path] * static_cast<double>(work_.keys[path]);
  }
  us *= step >= costs.changes_at_step ? costs.change : 1;
  return us * (1 + static_cast<double>(noise_percent) / 100);
}

void TimeLaws::Learn(const StepWork& measured) {
  for (std::size_t path = 0; path < kAttentionPaths; ++path) {
    rows_max_[path] = std::max(rows_max_[path], 2 * measured.rows[path]);
  }
  logits_max_ = std::max(logits_max_, 2 * measured.prompt_logprobs);
}

void TimeLaws::CheckDuration(std::int64_t elapsed_us) {
  const auto us = static_cast<double>(elapsed_us);
  ++steps_;
  constexpr double kWrong = 1.4;
  wrong_ += us > kWrong * estimate_us_ || kWrong * us < estimate_us_ ? 1 : 0;
}

// It needs some steps to learn what each path costs, and where that changes.
void TimeLaws::CheckTruth() const {
  constexpr std::int64_t kLearning = 30;
  SIM_CHECK(wrong_ <= kLearning + steps_ / 10,
            fmt::format("{} of {} steps took another time than estimated", wrong_, steps_));
}

void TimeLaws::CheckShare(double prompts_us_then, double overtaken_us_then) const {
  const auto target_us = static_cast<double>(config_.scheduler.step_time_target_us);
  const double overtaken_us = overtaken_us_ - overtaken_us_then;
  const double share_us = kShare * (prompts_us_ - prompts_us_then);
  SIM_CHECK(overtaken_us <= share_us + kShare * kAlone * target_us + token_us_max_ + kRounding,
            fmt::format("newcomers get {} us while prompts get {}", overtaken_us,
                        prompts_us_ - prompts_us_then));
}

}  // namespace dsa::sim
