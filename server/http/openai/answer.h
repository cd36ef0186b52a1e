// Parts of an answer as OpenAI's JSON.
#pragma once

#include "server/api/reply.h"
#include "server/api/service_context.h"
#include "server/http/openai/generation_request.h"

#include <cstdint>
#include <string>
#include <vector>

namespace dsa {

// Writes the messages of one answer, in order; remembers what a stream counts through.
class AnswerEncoder final {
 public:
  AnswerEncoder(Endpoint endpoint, const ServiceContext& context);

  // The one message of an answer that comes whole.
  std::string Whole(const ReplyPart& reply, const ReplyHead& head, const AnswerForm& form);

  // An event of a stream, "data: {...}\n\n"; with the finish where `part` has one.  Its usage is
  // null where there will be one, as OpenAI has it.
  std::string Event(const ReplyPart& part, const ReplyHead& head, const AnswerForm& form);
  // Behind the last: the usage, with no choice.
  std::string UsageEvent(const ReplyPart& last, const ReplyHead& head) const;

 private:
  const Endpoint endpoint_;
  const ServiceContext& context_;
  // How far a choice has come.
  struct Progress {
    bool begun = false;
    std::int64_t tool_calls = 0;   // so far
    std::int64_t text_offset = 0;  // characters so far, of a completion with logprobs
  };
  Progress& ProgressOf(const ReplyPart& part);

  const std::int64_t created_;  // seconds since 1970
  std::vector<Progress> choices_;
  // Of each prompt, for the answers behind its first, whose first event comes before theirs.
  std::vector<std::vector<GeneratedToken>> prompts_;
};

std::string AsEvent(const std::string& json);
inline constexpr std::string_view kLastEvent = "data: [DONE]\n\n";

}  // namespace dsa
