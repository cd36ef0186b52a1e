// What `dsa tokenize` and `dsa render` do: a JSON object a line in, one a line out.  Thread-safe.
#pragma once

#include "common/status.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>
#include <string_view>

namespace dsa {

enum class AddedMatching : std::uint8_t { kOff, kOn };

// {"text": "..."} to {"ids": [...]}
Result<std::string> TokenizeLine(const Tokenizer& tokenizer, AddedMatching matching,
                                 std::string_view line);

// {"messages": [...], "thinking": bool} to {"prompt": "..."}
Result<std::string> RenderLine(ChatFormat format, std::string_view line);

// Answers every line of `input` in order but those of white space alone; `write` gets the answer
// without its line end.  A line that fails is answered by {"error": "...", "line": N}, N counting
// all lines from 1.  Returns how many failed.
std::int64_t AnswerLines(std::istream& input,
                         const std::function<Result<std::string>(std::string_view)>& answer,
                         const std::function<void(std::string_view)>& write);

}  // namespace dsa
