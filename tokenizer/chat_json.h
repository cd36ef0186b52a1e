// Conversations in the JSON shape of OpenAI's chat completions.  Pure functions; thread-safe.
#pragma once

#include "common/status.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/python_json.h"

namespace dsa {

// "messages" and "tools" of an object, which may have other keys; thinking is left false.  A key
// inside of them that is not understood is refused where it says anything.  INVALID_ARGUMENT naming
// the field.
Result<Chat> ReadConversation(const PythonValue& document);

}  // namespace dsa
