// The plan of a step: who computes how many tokens.
#include "common/check.h"
#include "scheduler/scheduler.h"

#include <algorithm>
#include <limits>

namespace dsa {
namespace {

// Of a step in which nothing decodes, in targets.
constexpr double kTargetsAlone = 4;

// Tokens of prompts that a step carries, however long its replies take.
constexpr std::int64_t kPromptTokensMin = 16;

// Of the time that prompts take, what younger ones may have while an older one waits for it.
constexpr double kNewcomersShare = 1.0 / 8;

}  // namespace

// Calls visit(path, first position, tokens, samples) for each row of a plan that the sequence's
// next tokens are.
template <typename Visit>
void Scheduler::VisitRows(const Sequence& sequence, std::int64_t tokens, const Visit& visit) const {
  const std::int64_t end = sequence.computed_ + tokens;
  for (std::int64_t position = sequence.computed_; position < end;) {
    const std::int64_t row_end = std::min(end, PathEnd(sequence, position));
    visit(PathAt(sequence, position), position, row_end - position,
          row_end == sequence.tokens() && !sequence.only_prompt() ? 1 : 0);
    position = row_end;
  }
}

const StepPlan& Scheduler::Plan(MonotonicUs now_us, const StepCostModel& costs) {
  DSA_CHECK(!in_flight_, "Scheduler: a step of {} tokens is in flight", plan_.tokens);
  plan_.rows.clear();
  plan_.sample_rows.clear();
  plan_.writes.clear();
  plan_.tokens = 0;
  plan_.sequences = 0;
  plan_.work = {};
  for (auto& rows : rows_by_path_) {
    rows.clear();
  }
  ++plans_;
  budget_ = config_.step_tokens_max;
  prompt_logprobs_left_ = config_.prompt_logprob_rows_max;
  const std::int64_t preemptions_before = preemptions_;
  const std::int64_t decoding = GrantDecode();
  CountReplies();
  // Where blocks are short, nobody new may start.
  const Planning planning = {
      .now_us = now_us, .costs = costs, .may_start = preemptions_ == preemptions_before};
  if (decoding < static_cast<std::int64_t>(running_.size()) || !waiting_.empty()) {
    GrantPrompts(planning, decoding);
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
      GrantReply(sequence);
      ++granted;
    }
    ++index;
  }
  return granted;
}

// Of all replies at once: row by row as they are granted would take longer.
void Scheduler::CountReplies() {
  for (std::size_t path = 0; path < kAttentionPaths; ++path) {
    const std::vector<StepPlan::Row>& rows = rows_by_path_[path];
    const bool masked = IsMasked(static_cast<AttentionPath>(path));  // a prompt's last token
    std::int64_t keys = 0;
    for (const StepPlan::Row& row : rows) {
      if (masked) {
        plan_.work.Add(row.path, row.first_position, 1, 0);
      }
      keys += row.first_position + 1;
      plan_.work.samples += row.samples;
    }
    if (!masked) {
      plan_.work.rows[path] = static_cast<std::int64_t>(rows.size());
      plan_.work.keys[path] = keys;
    }
  }
}

// What replies leave of the step's time, to newcomers first, whose share is bounded, then in order.
void Scheduler::GrantPrompts(const Planning& planning, std::int64_t decoding) {
  const auto target_us = static_cast<double>(config_.step_time_target_us);
  prompt_tokens_ = 0;
  prompts_us_ = 0;
  time_left_us_ = std::numeric_limits<double>::infinity();
  if (target_us > 0) {
    time_left_us_ =
        (decoding > 0 ? 1 : kTargetsAlone) * target_us - planning.costs.EstimateUs(plan_.work);
    GrantShortOfLogits(planning);
    GrantNewcomers(planning);
  }
  GrantInOrder(planning);
  newcomers_credit_us_ = std::min(newcomers_credit_us_ + kNewcomersShare * prompts_us_,
                                  kNewcomersShare * kTargetsAlone * target_us);
}

// The first prompts in order where the step has less logits for them than time: all that there are.
// Whoever comes behind is not held up by them.
void Scheduler::GrantShortOfLogits(const Planning& planning) {
  for (std::size_t index = 0; index < running_.size(); ++index) {
    Sequence& sequence = *running_[index];
    const std::int64_t possible = WithinLogprobs(sequence, sequence.behind());
    if (sequence.behind() <= 1 || IsPlanned(sequence) || possible == 0) {
      continue;
    }
    const bool has_logits = possible == sequence.behind();
    if (has_logits || possible > budget_ ||
        std::max(kPromptTokensMin - prompt_tokens_,
                 TokensWithin(sequence, possible, time_left_us_, planning.costs)) < possible) {
      return;
    }
    prompt_tokens_ += possible;
    GrantPrompt(sequence, possible, planning.costs);
  }
}

// While the first other prompt in order takes the step's time and more, shorter ones behind it get
// a share of that time, the shortest first.  What they got too much, at most a token, is left out
// of the next share.
void Scheduler::GrantNewcomers(const Planning& planning) {
  const auto first =
      std::find_if(running_.begin(), running_.end(), [this](const Sequence* sequence) {
        return sequence->behind() > 1 && !IsPlanned(*sequence) && WithinLogprobs(*sequence, 1) > 0;
      });
  if (first == running_.end()) {
    return;
  }
  const Sequence& older = **first;
  const Sequence* const next = NextToStart();
  const bool yields = next != nullptr && ComesBefore(*next, older);
  const std::int64_t lacks = WithinLogprobs(older, older.behind());
  const std::int64_t possible =
      std::max(kPromptTokensMin, TokensWithin(older, lacks, time_left_us_, planning.costs));
  if (yields || std::min(possible, budget_) >= lacks) {
    return;
  }
  const auto target_us = static_cast<double>(config_.step_time_target_us);
  const double share_us = std::max(time_left_us_ / 2, kNewcomersShare * target_us);
  double left_us = std::min(newcomers_credit_us_, share_us);
  bool may_start = planning.may_start;
  while (left_us > 0 && budget_ > kPromptTokensMin) {
    Sequence* newcomer = ShortestNewcomer(older, may_start);
    if (newcomer == nullptr) {
      return;
    }
    if (newcomer->state_ == SequenceState::kWaiting && !TryPass(*newcomer, planning.now_us)) {
      may_start = false;
      continue;
    }
    const std::int64_t wanted = std::min(newcomer->behind(), budget_ - kPromptTokensMin);
    const std::int64_t affordable = TokensWithin(*newcomer, wanted, left_us, planning.costs);
    const double used_us =
        GrantPrompt(*newcomer, std::max<std::int64_t>(1, affordable), planning.costs);
    left_us -= used_us;
    newcomers_credit_us_ -= used_us;
  }
}

Sequence* Scheduler::ShortestNewcomer(const Sequence& older, bool may_start) const {
  Sequence* shortest = nullptr;
  std::int64_t shorter_than = older.behind();
  const auto look = [&](const std::vector<Sequence*>& sequences) {
    for (Sequence* sequence : sequences) {
      if (sequence->behind() < shorter_than && !IsPlanned(*sequence) &&
          !sequence->request_.prompt_logprobs.has_value() &&
          !(sequence->state_ == SequenceState::kWaiting && AwaitsSibling(*sequence))) {
        shortest = sequence;
        shorter_than = sequence->behind();
      }
    }
  };
  look(running_);
  if (may_start && static_cast<std::int64_t>(running_.size()) < config_.sequences_max) {
    look(waiting_);
  }
  return shortest;
}

// The first that waits and could compute a token in this step, as far as logits and siblings go;
// one that takes logits passes nobody.
Sequence* Scheduler::NextToStart() const {
  const auto next =
      std::find_if(waiting_.begin(), waiting_.end(), [this](const Sequence* sequence) {
        const bool in_order =
            sequence == waiting_.front() || !sequence->request_.prompt_logprobs.has_value();
        return in_order && WithinLogprobs(*sequence, 1) > 0 && !AwaitsSibling(*sequence);
      });
  return next == waiting_.end() ? nullptr : *next;
}

// Whether one that waits goes on before one that runs: the first of the queue alone, before those
// that passed it.
bool Scheduler::ComesBefore(const Sequence& waiting, const Sequence& running) const {
  return &waiting == waiting_.front() && running.passed_ && policy_->Before(waiting, running);
}

// Each gets all that it lacks before the next one gets any, but for logits of its prompt, of which
// a step has only so many.  Those that wait come after those that run, but before those that passed
// them.
void Scheduler::GrantInOrder(const Planning& planning) {
  bool may_start = planning.may_start;
  std::size_t index = 0;  // in running_: all before have what they get
  while (budget_ > 0 && (time_left_us_ > 0 || prompt_tokens_ < kPromptTokensMin)) {
    while (index < running_.size() &&
           (IsPlanned(*running_[index]) || WithinLogprobs(*running_[index], 1) == 0)) {
      ++index;
    }
    Sequence* sequence = index < running_.size() ? running_[index] : nullptr;
    may_start = may_start && static_cast<std::int64_t>(running_.size()) < config_.sequences_max;
    if (may_start && (sequence == nullptr || sequence->passed_)) {
      Sequence* const next = NextToStart();
      may_start = next != nullptr;
      if (may_start && (sequence == nullptr || ComesBefore(*next, *sequence))) {
        may_start = TryPass(*next, planning.now_us);
        sequence = may_start ? next : sequence;
      }
    }
    if (sequence == nullptr) {
      return;
    }
    const std::int64_t wanted = WithinLogprobs(*sequence, std::min(sequence->behind(), budget_));
    const std::int64_t least =
        std::min(wanted, std::max<std::int64_t>(1, kPromptTokensMin - prompt_tokens_));
    const std::int64_t tokens =
        std::max(least, TokensWithin(*sequence, wanted, time_left_us_, planning.costs));
    prompt_tokens_ += tokens;
    GrantPrompt(*sequence, tokens, planning.costs);
    if (tokens < wanted) {
      return;
    }
  }
}

// The most tokens, of `wanted`, that add no more than this time to the step, and no more rows of a
// path than the cost model may be asked about.
std::int64_t Scheduler::TokensWithin(const Sequence& sequence, std::int64_t wanted, double time_us,
                                     const StepCostModel& costs) const {
  if (config_.step_time_target_us == 0) {
    return wanted;
  }
  std::int64_t fits = 0;
  std::int64_t beyond = wanted + 1;
  while (beyond - fits > 1) {
    const std::int64_t tokens = fits + (beyond - fits) / 2;
    const StepWork work = WorkOf(sequence, tokens);
    bool known = true;
    for (std::size_t path = 0; path < kAttentionPaths; ++path) {
      const std::int64_t rows_max = costs.RowsMax(static_cast<AttentionPath>(path));
      const std::int64_t rows = plan_.work.rows[path] + work.rows[path];
      known = known && (work.rows[path] == 0 || rows <= rows_max);
    }
    known =
        known && (work.prompt_logprobs == 0 ||
                  plan_.work.prompt_logprobs + work.prompt_logprobs <= costs.PromptLogprobsMax());
    (known && costs.AddedUs(work) <= time_us ? fits : beyond) = tokens;
  }
  return fits;
}

StepWork Scheduler::WorkOf(const Sequence& sequence, std::int64_t tokens) const {
  StepWork work;
  VisitRows(sequence, tokens,
            [&](AttentionPath path, std::int64_t first, std::int64_t count, std::int32_t samples) {
              work.Add(path, first, count, samples);
              work.prompt_logprobs += PromptLogprobs(sequence, first, count);
            });
  return work;
}

// Returns the time that it should take.
double Scheduler::GrantPrompt(Sequence& sequence, std::int64_t tokens, const StepCostModel& costs) {
  const StepWork work = WorkOf(sequence, tokens);
  const double used_us = costs.AddedUs(work);
  plan_.work.Add(work);
  Grant(sequence, tokens);
  time_left_us_ -= used_us;
  prompts_us_ += used_us;
  return used_us;
}

// Grant of a reply's one token, which nearly all are.
void Scheduler::GrantReply(Sequence& sequence) {
  if (sequence.generated() == 0) {
    Grant(sequence, 1);  // the last of a prompt
    return;
  }
  const std::int64_t position = sequence.computed_;
  CountGrant(sequence, 1);
  const AttentionPath path = PathAt(sequence, position);
  rows_by_path_[static_cast<std::size_t>(path)].push_back({.sequence = sequence.id_,
                                                           .slot = sequence.slot_,
                                                           .first_position = position,
                                                           .tokens = 1,
                                                           .samples = 1,
                                                           .path = path});
  RecordWrite(sequence, position / pool_.tokens_per_block());
}

void Scheduler::Grant(Sequence& sequence, std::int64_t tokens) {
  CountGrant(sequence, tokens);
  VisitRows(sequence, tokens,
            [&](AttentionPath path, std::int64_t first, std::int64_t count, std::int32_t samples) {
              AddRow(sequence, path, first, count, samples);
            });
  const std::int64_t block_tokens = pool_.tokens_per_block();
  for (std::int64_t index = sequence.computed_ / block_tokens;
       index * block_tokens < sequence.computed_ + tokens; ++index) {
    RecordWrite(sequence, index);
  }
}

void Scheduler::CountGrant(Sequence& sequence, std::int64_t tokens) {
  const std::int64_t end = sequence.computed_ + tokens;
  DSA_CHECK(tokens > 0 && tokens <= budget_, "Scheduler: {} tokens granted of {}", tokens, budget_);
  DSA_CHECK(end <= sequence.blocks_.capacity_tokens(), "Scheduler: position {} beyond {} blocks",
            end - 1, sequence.blocks_.blocks());
  sequence.planned_ = plans_;
  budget_ -= tokens;
  plan_.tokens += tokens;
  ++plan_.sequences;
}

void Scheduler::AddRow(const Sequence& sequence, AttentionPath path, std::int64_t first,
                       std::int64_t tokens, std::int32_t samples) {
  const auto logprobs = static_cast<std::int32_t>(PromptLogprobs(sequence, first, tokens));
  rows_by_path_[static_cast<std::size_t>(path)].push_back({.sequence = sequence.id_,
                                                           .slot = sequence.slot_,
                                                           .first_position = first,
                                                           .tokens = tokens,
                                                           .samples = samples,
                                                           .path = path,
                                                           .prompt_logprobs = logprobs});
  prompt_logprobs_left_ -= logprobs;
}

// A block that holds the sequence's next positions: its own alone.
void Scheduler::RecordWrite(const Sequence& sequence, std::int64_t index) {
  const BlockId block = sequence.blocks_.block(index);
  plan_.writes.push_back({.block = block, .generation = pool_.WritableGeneration(block)});
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

}  // namespace dsa
