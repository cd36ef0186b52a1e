// The answers of one call, n to each of its prompts: what each has said that is not written yet,
// what that holds in memory, and how they end.  Not for several threads at once.
#pragma once

#include "common/status.h"
#include "server/api/reply.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace dsa {

class CallAnswers final {
 public:
  // Counts the bytes that are held in `held_bytes`, too, which lives while any are: until Drop.
  explicit CallAnswers(std::atomic<std::int64_t>& held_bytes) : held_bytes_of_all_(held_bytes) {}
  CallAnswers(const CallAnswers&) = delete;
  CallAnswers& operator=(const CallAnswers&) = delete;
  ~CallAnswers() = default;

  // Once, before anything else; until then there is no answer.  `answers` to each prompt, of which
  // the lengths are given.
  void Begin(std::span<const std::int64_t> prompt_tokens, std::int64_t answers,
             ReportLogprobs logprobs);

  // The answer of part.index has gone on.
  void Note(const ReplyPart& part);
  // Keeps a part until it is taken.  One that only repeats the usage is worth no message, unless it
  // is the last.
  void Hold(ReplyPart&& part);
  // All that one answer holds, each in its turn, with the usage of all; what is said of a prompt
  // comes before all else of the others' to it.  One holds something.
  ReplyPart Take();
  // All that all hold, as one part.  One holds something.
  ReplyPart TakeAll();
  void Drop();

  std::int64_t waiting() const { return waiting_; }  // how many hold something
  std::int64_t held_bytes() const { return held_bytes_; }
  // Candidates included; 0 where they are not reported.
  std::int64_t held_logprobs() const { return held_logprobs_; }
  bool holds_text() const;  // or tokens: what a client would see

  bool finished() const { return !answers_.empty() && unfinished_ == 0; }  // all of them
  // How the call ends by what the engine said of all; OK only where none failed.
  Status Outcome(bool draining) const;
  std::optional<Error> error() const;         // of the first that failed
  std::optional<ReplyFinish> finish() const;  // of the first answer
  // A prompt counts once, as its first answer found it.
  Usage usage() const;

 private:
  struct Answer {
    ReplyPart pending{};
    bool has_pending = false;
    std::int64_t held_bytes = 0;
    std::int64_t held_logprobs = 0;
    // Of the part last seen.
    Usage usage{};
    std::int64_t reasoning_tokens = 0;
    std::optional<ReplyFinish> finish{};
    std::optional<Error> error{};
  };

  ReplyPart TakeFrom(Answer& answer);
  std::int64_t reasoning_tokens() const;

  std::atomic<std::int64_t>& held_bytes_of_all_;
  ReportLogprobs logprobs_ = ReportLogprobs::kNo;
  std::size_t answers_per_prompt_ = 1;
  std::vector<Answer> answers_;
  // Of all answers.
  std::int64_t waiting_ = 0;
  std::int64_t unfinished_ = 0;
  std::int64_t held_bytes_ = 0;
  std::int64_t held_logprobs_ = 0;
  std::size_t next_ = 0;  // whose turn it is to be taken
};

}  // namespace dsa
