// Which chat format a checkpoint speaks, by the templates that lie in it.  Templates are looked at
// and never run: their marks say which of the formats that are built in here they describe.
#pragma once

#include "common/status.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

#include <optional>
#include <string>
#include <string_view>

namespace dsa {

struct ChatFormatChoice {
  std::optional<ChatFormat> format;  // nullopt: chat is refused
  std::string reason;                // one line, for the log and for whoever is refused
};

// "v3.2" and "v3.1"; nullopt for anything else.
std::optional<ChatFormat> ParseChatFormat(std::string_view name);
std::string_view ToString(ChatFormat format);

// The format that a template in Jinja writes; nullopt where it is neither.
std::optional<ChatFormat> FormatOfTemplate(std::string_view text);

// The format of the checkpoint in `folder`: of chat_template.jinja, else of "chat_template" in
// tokenizer_config.json, a text or a list of named ones, whose default counts; else
// `without_template`.  INVALID_ARGUMENT where a file cannot be read.
Result<ChatFormatChoice> FindChatFormat(const std::string& folder, const Tokenizer& tokenizer,
                                        std::optional<ChatFormat> without_template);

// INVALID_ARGUMENT naming the first token that both formats need and that is none of the
// tokenizer's.
Status CheckChatTokens(const Tokenizer& tokenizer);

}  // namespace dsa
