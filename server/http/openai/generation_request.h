// Bodies of /v1/chat/completions and /v1/completions as an Ask.
#pragma once

#include "common/status.h"
#include "server/api/ask.h"
#include "server/http/openai/request_fields.h"

#include <cstdint>
#include <string_view>

namespace dsa {

enum class Endpoint : std::uint8_t { kChat, kCompletion };

// What a body says of its answer's form, and what of it nobody knew.
struct AnswerForm {
  bool include_usage = false;    // of a stream
  bool echo = false;             // of a completion
  bool prompt_logprobs = false;  // of a completion that comes whole, beside its text
};

// What becomes of a chat's prompt: `messages`, `tools` and their choice, thinking, what is
// continued. OpenAI's developer instructs as a system message does; one that nobody asks behind is
// the chat format's own.
Result<Chat> TakeChat(RequestFields& fields);

// What the endpoint calls the fields of an Ask.
FieldNames FieldNamesOf(Endpoint endpoint);

// `names.max_tokens` becomes the field that the client used.  INVALID_ARGUMENT, or UNIMPLEMENTED
// for a field that is documented and not supported, unless its value changes nothing.
Status ReadGeneration(Endpoint endpoint, std::string_view body, UnknownKeys unknown, Ask& ask,
                      AnswerForm& form, FieldNames& names);

}  // namespace dsa
