#include "server/api/call_answers.h"

#include "server/api/errors.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

namespace dsa {
namespace {

Status OutcomeOf(ReplyFinish finish, const std::optional<Error>& error, bool draining) {
  switch (finish) {
    case ReplyFinish::kStop:
    case ReplyFinish::kLength:
    case ReplyFinish::kToolCalls: return {};
    case ReplyFinish::kAborted: return draining ? Status(DrainingError()) : Status();
    case ReplyFinish::kCancelled: return CancelledError();
    case ReplyFinish::kDeadline: return error.value_or(LateError());
    case ReplyFinish::kError: break;
  }
  return error.value_or(Error{ErrorCode::kInternal, "the model failed"});
}

}  // namespace

void CallAnswers::Begin(std::span<const std::int64_t> prompt_tokens, std::int64_t answers,
                        ReportLogprobs logprobs) {
  answers_per_prompt_ = static_cast<std::size_t>(answers);
  answers_.resize(prompt_tokens.size() * answers_per_prompt_);
  for (std::size_t i = 0; i < prompt_tokens.size(); ++i) {
    answers_[i * answers_per_prompt_].usage.prompt_tokens = prompt_tokens[i];
  }
  unfinished_ = static_cast<std::int64_t>(answers_.size());
  logprobs_ = logprobs;
}

void CallAnswers::Note(const ReplyPart& part) {
  Answer& answer = answers_[static_cast<std::size_t>(part.index)];
  answer.usage = part.usage;
  answer.reasoning_tokens = part.reasoning_tokens;
  if (part.finish && !answer.finish) {
    --unfinished_;
  }
  answer.finish = part.finish;
  answer.error = part.error;
}

void CallAnswers::Hold(ReplyPart&& part) {
  Answer& answer = answers_[static_cast<std::size_t>(part.index)];
  if (!answer.has_pending && part.empty() && !part.finish) {
    return;
  }
  const std::int64_t bytes = part.bytes();
  answer.held_bytes += bytes;
  held_bytes_ += bytes;
  held_bytes_of_all_.fetch_add(bytes, std::memory_order_relaxed);
  if (logprobs_ == ReportLogprobs::kYes) {
    for (const GeneratedToken& token : part.tokens) {
      const std::int64_t logprobs = 1 + static_cast<std::int64_t>(token.top_logprobs.size());
      answer.held_logprobs += logprobs;
      held_logprobs_ += logprobs;
    }
  }
  Merge(answer.pending, std::move(part));
  waiting_ += answer.has_pending ? 0 : 1;
  answer.has_pending = true;
}

// But for the usage, which is that of all.
ReplyPart CallAnswers::TakeFrom(Answer& answer) {
  held_bytes_of_all_.fetch_sub(answer.held_bytes, std::memory_order_relaxed);
  held_bytes_ -= std::exchange(answer.held_bytes, 0);
  held_logprobs_ -= std::exchange(answer.held_logprobs, 0);
  waiting_ -= answer.has_pending ? 1 : 0;
  answer.has_pending = false;
  return std::exchange(answer.pending, {});
}

ReplyPart CallAnswers::Take() {
  while (!answers_[next_].has_pending) {
    next_ = (next_ + 1) % answers_.size();
  }
  Answer& first = answers_[next_ - next_ % answers_per_prompt_];
  ReplyPart part = TakeFrom(first.pending.prompt.empty() ? answers_[next_] : first);
  if (!answers_[next_].has_pending) {  // else its turn is still to come
    next_ = (next_ + 1) % answers_.size();
  }
  part.usage = usage();
  part.reasoning_tokens = reasoning_tokens();
  return part;
}

ReplyPart CallAnswers::TakeAll() {
  const Usage all = usage();
  const std::int64_t all_reasoning_tokens = reasoning_tokens();
  std::vector<ReplyPart> parts;
  for (Answer& answer : answers_) {
    if (answer.has_pending) {
      parts.push_back(TakeFrom(answer));
      parts.back().usage = all;
      parts.back().reasoning_tokens = all_reasoning_tokens;
    }
  }
  ReplyPart first = std::move(parts.front());
  first.others.assign(std::make_move_iterator(parts.begin() + 1),
                      std::make_move_iterator(parts.end()));
  return first;
}

void CallAnswers::Drop() {
  for (Answer& answer : answers_) {
    TakeFrom(answer);
  }
}

bool CallAnswers::holds_text() const {
  return std::any_of(answers_.begin(), answers_.end(),
                     [](const Answer& answer) { return !answer.pending.empty(); });
}

Status CallAnswers::Outcome(bool draining) const {
  for (const Answer& answer : answers_) {
    DSA_RETURN_IF_ERROR(OutcomeOf(*answer.finish, answer.error, draining));
  }
  return {};
}

std::optional<Error> CallAnswers::error() const {
  for (const Answer& answer : answers_) {
    if (answer.error) {
      return answer.error;
    }
  }
  return std::nullopt;
}

std::optional<ReplyFinish> CallAnswers::finish() const {
  return answers_.empty() ? std::nullopt : answers_.front().finish;
}

Usage CallAnswers::usage() const {
  Usage total;
  for (std::size_t i = 0; i < answers_.size(); ++i) {
    const Usage& usage = answers_[i].usage;
    if (i % answers_per_prompt_ == 0) {
      total.prompt_tokens += usage.prompt_tokens;
      total.cache_hit_tokens += usage.cache_hit_tokens;
      total.queue_us = std::max(total.queue_us, usage.queue_us);
      total.prefill_us = std::max(total.prefill_us, usage.prefill_us);
    }
    total.completion_tokens += usage.completion_tokens;
    total.preemptions += usage.preemptions;
    total.decode_us = std::max(total.decode_us, usage.decode_us);
    total.cost.prefill_us += usage.cost.prefill_us;
    total.cost.decode_us += usage.cost.decode_us;
  }
  return total;
}

std::int64_t CallAnswers::reasoning_tokens() const {
  return std::accumulate(
      answers_.begin(), answers_.end(), std::int64_t{0},
      [](std::int64_t sum, const Answer& answer) { return sum + answer.reasoning_tokens; });
}

}  // namespace dsa
