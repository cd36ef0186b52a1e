// What a client sends as a prompt, checked and turned into token ids.  Thread-safe.
#pragma once

#include "common/status.h"
#include "server/api/service_context.h"
#include "tokenizer/chat_template.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// How a protocol names the parts of a conversation.
struct ChatFieldNames {
  std::string_view prefix;  // of "messages" and "tools": "" or "conversation."
  std::string_view tool;    // the text of a tool, behind "tools[i]": ".function_json"
};

// NOT_FOUND naming `field` unless `model` is empty or the one served.
Status CheckModel(std::string_view model, std::string_view field, const ServiceContext& context);

// FAILED_PRECONDITION without a tokenizer.
Result<const Tokenizer*> NeedTokenizer(const ServiceContext& context);

// INVALID_ARGUMENT naming `field`, the index and the id unless all lie in [0, vocabulary).
Result<std::vector<TokenId>> ToTokenIds(std::span<const std::int64_t> ids, std::string_view field,
                                        const ServiceContext& context);

// FAILED_PRECONDITION without a tokenizer or a chat format; INVALID_ARGUMENT for a conversation
// that cannot be.
Result<RenderedPrompt> RenderPrompt(const Chat& chat, const ChatFieldNames& names,
                                    const ServiceContext& context);

// Added tokens match inside `ranges` only.  INVALID_ARGUMENT naming `field` where an answer of so
// many tokens would have no room, with how many there are unless there are far too many: costs
// about what the context costs, whatever the text.
Result<std::vector<TokenId>> EncodePrompt(std::string_view text, std::span<const TextRange> ranges,
                                          std::int64_t answer_tokens_min, std::string_view field,
                                          const ServiceContext& context);

// Of one text, where its ids are the answer: more than any context has, so that a client learns how
// much of it is too much, and so few that large texts do not wait long for each other.
inline constexpr std::size_t kTextTokensMax = std::size_t{1} << 20;

// As EncodePrompt.  INVALID_ARGUMENT naming `field` for more than kTextTokensMax.
Result<std::vector<TokenId>> EncodeWithin(std::string_view text, std::span<const TextRange> ranges,
                                          std::string_view field, const ServiceContext& context);

// Of the text of ids: no smaller than a text that comes in may be, by default.
inline constexpr std::size_t kAnswerTextBytesMax = std::size_t{16} << 20;

// The text of `ids`.  FAILED_PRECONDITION without a tokenizer; INVALID_ARGUMENT naming `field` for
// more than kTextTokensMax of them, one outside the vocabulary, or a text beyond
// kAnswerTextBytesMax: a token may have a hundred bytes, and its id one.
Result<std::string> DecodeWithin(std::span<const std::int64_t> ids, std::string_view field,
                                 const ServiceContext& context);

}  // namespace dsa
