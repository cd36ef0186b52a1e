#include "server/grpc/v1/translate.h"

#include "common/json.h"
#include "server/grpc/v1/translate_params.h"

#include <optional>
#include <span>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr int kToolsMax = 128;
constexpr std::size_t kShownBytesMax = 128;

Result<ChatRole> ToRole(v1::Role role, const std::string& path) {
  switch (role) {
    case v1::ROLE_SYSTEM: return ChatRole::kSystem;
    case v1::ROLE_DEVELOPER: return ChatRole::kDeveloper;
    case v1::ROLE_USER: return ChatRole::kUser;
    case v1::ROLE_ASSISTANT: return ChatRole::kAssistant;
    case v1::ROLE_TOOL: return ChatRole::kTool;
    default:
      return InvalidArgument(
          fmt::format("{}.role: {} is none of system (1), developer (2), user (3), assistant (4), "
                      "tool (5)",
                      path, static_cast<int>(role)));
  }
}

Result<ChatMessage> ToChatMessage(const v1::Message& message, const std::string& path) {
  ChatMessage result;
  DSA_ASSIGN_OR_RETURN(result.role, ToRole(message.role(), path));
  const bool is_assistant = result.role == ChatRole::kAssistant;
  if (!is_assistant && !message.reasoning_content().empty()) {
    return InvalidArgument(path + ".reasoning_content: only an assistant has it");
  }
  if (!is_assistant && message.tool_calls_size() > 0) {
    return InvalidArgument(path + ".tool_calls: only an assistant has them");
  }
  if (result.role != ChatRole::kTool && !message.tool_call_id().empty()) {
    return InvalidArgument(path + ".tool_call_id: only a tool has it");
  }
  if (!message.has_content() && message.tool_calls_size() == 0) {
    return InvalidArgument(path + ".content: missing");
  }
  if (message.has_content()) {
    result.content = message.content();
  }
  result.reasoning_content = message.reasoning_content();
  result.tool_call_id = message.tool_call_id();
  for (const v1::ToolCall& call : message.tool_calls()) {
    result.tool_calls.push_back(
        {.id = call.id(), .name = call.name(), .arguments = call.arguments()});
  }
  return result;
}

// The text of a JSON object with a name.
Status CheckTool(const std::string& json, const std::string& path) {
  DSA_ASSIGN_OR_RETURN(const Json document, ParseJson(json, path));
  DSA_ASSIGN_OR_RETURN(JsonObject object, JsonObject::From(document, path, ""));
  DSA_ASSIGN_OR_RETURN(const std::string name, object.ReadString("name"));
  if (name.empty()) {
    return object.MakeError("name", "empty");
  }
  return {};
}

Result<Chat> ToChat(const v1::Conversation& message, std::string_view path) {
  Chat chat;
  if (message.messages_size() == 0) {
    return InvalidArgument(fmt::format("{}messages: empty", path));
  }
  for (int i = 0; i < message.messages_size(); ++i) {
    DSA_ASSIGN_OR_RETURN(ChatMessage turn, ToChatMessage(message.messages(i),
                                                         fmt::format("{}messages[{}]", path, i)));
    chat.messages.push_back(std::move(turn));
  }
  if (message.tools_size() > kToolsMax) {
    return InvalidArgument(
        fmt::format("{}tools: {} tools, at most {}", path, message.tools_size(), kToolsMax));
  }
  for (int i = 0; i < message.tools_size(); ++i) {
    const std::string& json = message.tools(i).function_json();
    DSA_RETURN_IF_ERROR(CheckTool(json, fmt::format("{}tools[{}].function_json", path, i)));
    chat.tools.push_back(json);
  }
  chat.thinking = message.thinking();
  return chat;
}

// An answer needs one token.
std::int64_t PromptTokensMax(const ServiceContext& context) {
  return context.model.context_length - 1;
}

// Costs what `tokens_max` tokens cost, whatever the text.
Result<std::vector<TokenId>> EncodePrompt(const Tokenizer& tokenizer, std::string_view text,
                                          std::span<const TextRange> ranges,
                                          std::int64_t tokens_max) {
  std::optional<std::vector<TokenId>> ids =
      tokenizer.EncodeAtMost(text, ranges, static_cast<std::size_t>(tokens_max));
  if (ids) {
    return *std::move(ids);
  }
  return InvalidArgument(fmt::format(
      "prompt: more than {} tokens, at most {}: the context has {} and an answer needs 1",
      tokens_max, tokens_max, tokens_max + 1));
}

// The prompt's ids of a completion.
Result<std::vector<TokenId>> CompletionPrompt(const v1::CompletionRequest& message,
                                              const ServiceContext& context) {
  if (message.has_token_ids()) {
    if (message.parse_special()) {
      return InvalidArgument("parse_special: only for text");
    }
    if (message.has_add_bos()) {
      return InvalidArgument("add_bos: only for text");
    }
    return ToTokenIds(message.token_ids().ids(), "token_ids.ids", context);
  }
  if (!message.has_text()) {
    return InvalidArgument("prompt: missing: text or token_ids");
  }
  DSA_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(context));
  const bool add_bos = message.has_add_bos() ? message.add_bos() : context.model.add_bos;
  std::vector<TokenId> prompt;
  if (add_bos) {
    if (!context.model.bos) {
      return InvalidArgument("add_bos: the model has no begin-of-sentence id");
    }
    prompt.push_back(*context.model.bos);
  }
  const TextRange all{.begin = 0, .end = message.text().size()};
  DSA_ASSIGN_OR_RETURN(
      const std::vector<TokenId> ids,
      EncodePrompt(*tokenizer, message.text(), {&all, message.parse_special() ? 1U : 0U},
                   PromptTokensMax(context)));
  prompt.insert(prompt.end(), ids.begin(), ids.end());
  return prompt;
}

// What follows the prompt, for both requests.
template <typename Message>
Result<Generation> Finish(const Message& message, std::vector<TokenId> prompt,
                          const ServiceContext& context) {
  Generation generation;
  Request& request = generation.request;
  DSA_ASSIGN_OR_RETURN(request.sampling, TranslateSampling(message.sampling(), context));
  DSA_ASSIGN_OR_RETURN(
      request.stop,
      TranslateStop(message.stop(), static_cast<std::int64_t>(prompt.size()), context));
  request.prompt = std::move(prompt);
  std::optional<std::int64_t> top_logprobs;
  if (message.has_top_logprobs()) {
    top_logprobs = message.top_logprobs();
  }
  DSA_RETURN_IF_ERROR(TranslateCommon({.logprobs = message.logprobs(),
                                       .top_logprobs = top_logprobs,
                                       .cache_salt = message.cache_salt(),
                                       .priority = message.priority()},
                                      request));
  generation.logprobs = message.logprobs() ? ReportLogprobs::kYes : ReportLogprobs::kNo;
  return generation;
}

}  // namespace

Status CheckModel(std::string_view model, const ServiceContext& context) {
  if (model.empty() || model == context.model.id) {
    return {};
  }
  return Error{ErrorCode::kNotFound, fmt::format("model: \"{}\" is not served; \"{}\" is",
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

Result<std::vector<TokenId>> ToTokenIds(const google::protobuf::RepeatedField<std::int64_t>& ids,
                                        std::string_view field, const ServiceContext& context) {
  std::vector<TokenId> result;
  result.reserve(ids.size());
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= context.model.vocabulary) {
      return InvalidArgument(
          fmt::format("{}[{}]: {} is not in [0, {})", field, i, ids[i], context.model.vocabulary));
    }
    result.push_back(static_cast<TokenId>(ids[i]));
  }
  return result;
}

Result<RenderedPrompt> RenderConversation(const v1::Conversation& message, std::string_view path,
                                          const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(NeedTokenizer(context));
  if (!context.model.chat_format) {
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("model \"{}\" has no known chat format ({}): use completion",
                             context.model.id, context.model.chat_format_reason)};
  }
  DSA_ASSIGN_OR_RETURN(const Chat chat, ToChat(message, path));
  return RenderChat(chat, *context.model.chat_format);
}

Result<Generation> Translate(const v1::ChatRequest& message, const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(CheckNoRefusedFields(message));
  DSA_RETURN_IF_ERROR(CheckModel(message.model(), context));
  v1::Conversation conversation;
  *conversation.mutable_messages() = message.messages();
  *conversation.mutable_tools() = message.tools();
  conversation.set_thinking(message.thinking());
  DSA_ASSIGN_OR_RETURN(const RenderedPrompt chat, RenderConversation(conversation, "", context));
  DSA_ASSIGN_OR_RETURN(
      std::vector<TokenId> prompt,
      EncodePrompt(*context.tokenizer, chat.text, chat.template_ranges, PromptTokensMax(context)));
  DSA_ASSIGN_OR_RETURN(Generation generation, Finish(message, std::move(prompt), context));
  generation.format = {.chat = context.model.chat_format, .thinking = message.thinking()};
  return generation;
}

Result<Generation> Translate(const v1::CompletionRequest& message, const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(CheckNoRefusedFields(message));
  DSA_RETURN_IF_ERROR(CheckModel(message.model(), context));
  DSA_ASSIGN_OR_RETURN(std::vector<TokenId> prompt, CompletionPrompt(message, context));
  if (prompt.empty()) {
    return InvalidArgument("prompt: empty: at least one token");
  }
  return Finish(message, std::move(prompt), context);
}

}  // namespace dsa
