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

void CallAnswers::Begin(std::int64_t count, std::int64_t prompt_tokens, ReportLogprobs logprobs) {
  answers_.resize(static_cast<std::size_t>(count));
  answers_.front().usage.prompt_tokens = prompt_tokens;
  logprobs_ = logprobs;
}

void CallAnswers::Note(const ReplyPart& part) {
  Answer& answer = answers_[static_cast<std::size_t>(part.index)];
  answer.usage = part.usage;
  answer.reasoning_tokens = part.reasoning_tokens;
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
  held_bytes_of_all_.fetch_add(bytes, std::memory_order_relaxed);
  if (logprobs_ == ReportLogprobs::kYes) {
    for (const GeneratedToken& token : part.tokens) {
      answer.held_logprobs += 1 + static_cast<std::int64_t>(token.top_logprobs.size());
    }
  }
  Merge(answer.pending, std::move(part));
  answer.has_pending = true;
}

ReplyPart CallAnswers::TakeFrom(Answer& answer) {
  held_bytes_of_all_.fetch_sub(std::exchange(answer.held_bytes, 0), std::memory_order_relaxed);
  answer.held_logprobs = 0;
  answer.has_pending = false;
  ReplyPart part = std::exchange(answer.pending, {});
  part.usage = usage();
  part.reasoning_tokens = 0;
  for (const Answer& one : answers_) {
    part.reasoning_tokens += one.reasoning_tokens;
  }
  return part;
}

ReplyPart CallAnswers::Take() {
  while (!answers_[next_].has_pending) {
    next_ = (next_ + 1) % answers_.size();
  }
  Answer& answer = answers_[next_];
  next_ = (next_ + 1) % answers_.size();
  return TakeFrom(answer);
}

ReplyPart CallAnswers::TakeAll() {
  std::vector<ReplyPart> parts;
  for (Answer& answer : answers_) {
    if (answer.has_pending) {
      parts.push_back(TakeFrom(answer));
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

std::int64_t CallAnswers::waiting() const {
  return std::count_if(answers_.begin(), answers_.end(),
                       [](const Answer& answer) { return answer.has_pending; });
}

std::int64_t CallAnswers::held_bytes() const {
  return std::accumulate(
      answers_.begin(), answers_.end(), std::int64_t{0},
      [](std::int64_t sum, const Answer& answer) { return sum + answer.held_bytes; });
}

std::int64_t CallAnswers::held_logprobs() const {
  return std::accumulate(
      answers_.begin(), answers_.end(), std::int64_t{0},
      [](std::int64_t sum, const Answer& answer) { return sum + answer.held_logprobs; });
}

bool CallAnswers::holds_text() const {
  return std::any_of(answers_.begin(), answers_.end(),
                     [](const Answer& answer) { return !answer.pending.empty(); });
}

bool CallAnswers::finished() const {
  return !answers_.empty() && std::all_of(answers_.begin(), answers_.end(),
                                          [](const Answer& one) { return one.finish.has_value(); });
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
  if (answers_.empty()) {
    return {};
  }
  Usage total = answers_.front().usage;
  for (std::size_t i = 1; i < answers_.size(); ++i) {
    const Usage& usage = answers_[i].usage;
    total.completion_tokens += usage.completion_tokens;
    total.preemptions += usage.preemptions;
    total.decode_us = std::max(total.decode_us, usage.decode_us);
    total.cost.prefill_us += usage.cost.prefill_us;
    total.cost.decode_us += usage.cost.decode_us;
  }
  return total;
}

}  // namespace dsa
