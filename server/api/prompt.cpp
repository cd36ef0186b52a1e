#include "server/api/prompt.h"

#include "common/json.h"

#include <algorithm>
#include <optional>
#include <string>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::size_t kToolsMax = 128;
constexpr std::size_t kShownBytesMax = 128;
// Of a text that is too long, to say by how much.
constexpr std::size_t kCountedBytesMin = std::size_t{256} << 10;
constexpr std::size_t kCountedBytesPerToken = 8;

Status CheckMessage(const ChatMessage& message, const std::string& path) {
  const bool is_assistant = message.role == ChatRole::kAssistant;
  if (!is_assistant && !message.reasoning_content.empty()) {
    return InvalidArgument(path + ".reasoning_content: only an assistant has it");
  }
  if (!is_assistant && !message.tool_calls.empty()) {
    return InvalidArgument(path + ".tool_calls: only an assistant has them");
  }
  if (message.role != ChatRole::kTool && !message.tool_call_id.empty()) {
    return InvalidArgument(path + ".tool_call_id: only a tool has it");
  }
  // One that is continued may be so within its reasoning, which the chat format knows about.
  if (!message.content && message.tool_calls.empty() && !message.prefix) {
    return InvalidArgument(path + ".content: missing");
  }
  return {};
}

// The text of a JSON object with a name.
Status CheckTool(const std::string& json, const std::string& path) {
  DSA_ASSIGN_OR_RETURN(const Json document,
                       ParseJson(json, path, {.values_max = kClientJsonValuesMax}));
  DSA_ASSIGN_OR_RETURN(JsonObject object, JsonObject::From(document, path, ""));
  DSA_ASSIGN_OR_RETURN(const std::string name, object.ReadString("name"));
  if (name.empty()) {
    return object.MakeError("name", "empty");
  }
  return {};
}

Status CheckChat(const Chat& chat, const ChatFieldNames& names) {
  if (chat.messages.empty()) {
    return InvalidArgument(fmt::format("{}messages: empty", names.prefix));
  }
  for (std::size_t i = 0; i < chat.messages.size(); ++i) {
    DSA_RETURN_IF_ERROR(
        CheckMessage(chat.messages[i], fmt::format("{}messages[{}]", names.prefix, i)));
  }
  if (chat.tools.size() > kToolsMax) {
    return InvalidArgument(
        fmt::format("{}tools: {} tools, at most {}", names.prefix, chat.tools.size(), kToolsMax));
  }
  for (std::size_t i = 0; i < chat.tools.size(); ++i) {
    DSA_RETURN_IF_ERROR(
        CheckTool(chat.tools[i], fmt::format("{}tools[{}]{}", names.prefix, i, names.tool)));
  }
  return {};
}

}  // namespace

Status CheckModel(std::string_view model, std::string_view field, const ServiceContext& context) {
  if (model.empty() || model == context.model.id) {
    return {};
  }
  return Error{ErrorCode::kNotFound, fmt::format("{}: \"{}\" is not served; \"{}\" is", field,
                                                 Escape(model, kShownBytesMax), context.model.id)};
}

Result<const Tokenizer*> NeedTokenizer(const ServiceContext& context) {
  if (context.tokenizer == nullptr) {
    return Error{
        ErrorCode::kFailedPrecondition,
        fmt::format("model \"{}\" has no tokenizer: only token ids work", context.model.id)};
  }
  return context.tokenizer;
}

Result<std::vector<TokenId>> ToTokenIds(std::span<const std::int64_t> ids, std::string_view field,
                                        const ServiceContext& context) {
  std::vector<TokenId> result;
  result.reserve(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= context.model.vocabulary) {
      return InvalidArgument(
          fmt::format("{}[{}]: {} is not in [0, {})", field, i, ids[i], context.model.vocabulary));
    }
    result.push_back(static_cast<TokenId>(ids[i]));
  }
  return result;
}

Result<RenderedPrompt> RenderPrompt(const Chat& chat, const ChatFieldNames& names,
                                    const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(NeedTokenizer(context));
  if (!context.model.chat_format) {
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("model \"{}\" has no known chat format ({}): use completion",
                             context.model.id, context.model.chat_format_reason)};
  }
  DSA_RETURN_IF_ERROR(CheckChat(chat, names));
  return RenderChat(chat, *context.model.chat_format);
}

Result<std::vector<TokenId>> EncodePrompt(std::string_view text, std::span<const TextRange> ranges,
                                          std::int64_t answer_tokens_min, std::string_view field,
                                          const ServiceContext& context) {
  DSA_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(context));
  const std::int64_t context_length = context.model.context_length;
  const std::int64_t tokens_max = context_length - answer_tokens_min;
  std::optional<std::vector<TokenId>> ids =
      tokenizer->EncodeAtMost(text, ranges, static_cast<std::size_t>(tokens_max));
  if (ids) {
    return *std::move(ids);
  }
  // How many it would need, where finding out costs about what a prompt that fits may cost.
  const auto counted_bytes_max =
      std::max(kCountedBytesMin, kCountedBytesPerToken * static_cast<std::size_t>(tokens_max));
  const std::string need = text.size() <= counted_bytes_max
                               ? std::to_string(tokenizer->EncodeWithAdded(text, ranges).size())
                               : fmt::format("more than {}", tokens_max);
  return InvalidArgument(fmt::format("{}: {} tokens, at most {}: the context has {}{}", field, need,
                                     tokens_max, context_length,
                                     answer_tokens_min > 0 ? " and an answer needs 1" : ""));
}

Result<std::vector<TokenId>> EncodeWithin(std::string_view text, std::span<const TextRange> ranges,
                                          std::string_view field, const ServiceContext& context) {
  DSA_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(context));
  std::optional<std::vector<TokenId>> ids = tokenizer->EncodeAtMost(text, ranges, kTextTokensMax);
  if (ids) {
    return *std::move(ids);
  }
  return InvalidArgument(
      fmt::format("{}: more than {} tokens, at most {}", field, kTextTokensMax, kTextTokensMax));
}

Result<std::string> DecodeWithin(std::span<const std::int64_t> ids, std::string_view field,
                                 const ServiceContext& context) {
  DSA_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(context));
  if (ids.size() > kTextTokensMax) {
    return InvalidArgument(
        fmt::format("{}: {} tokens, at most {}", field, ids.size(), kTextTokensMax));
  }
  DSA_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, ToTokenIds(ids, field, context));
  std::string text;
  IncrementalDecoder decoder(*tokenizer);
  for (const TokenId id : tokens) {
    decoder.Push(id, text);
    if (text.size() > kAnswerTextBytesMax) {
      return InvalidArgument(fmt::format("{}: more than {} bytes of text, at most {}", field,
                                         kAnswerTextBytesMax, kAnswerTextBytesMax));
    }
  }
  decoder.Finish(text);
  return text;
}

}  // namespace dsa
