#include "server/grpc/v1/translate.h"

#include <string>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

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
  if (message.has_content()) {
    result.content = message.content();
  }
  result.reasoning_content = message.reasoning_content();
  result.tool_call_id = message.tool_call_id();
  result.prefix = message.prefix();
  for (const v1::ToolCall& call : message.tool_calls()) {
    result.tool_calls.push_back(
        {.id = call.id(), .name = call.name(), .arguments = call.arguments()});
  }
  return result;
}

void ReadSampling(const v1::SamplingParams& message, Ask& ask) {
  if (message.has_temperature()) {
    ask.temperature = message.temperature();
  }
  if (message.has_top_p()) {
    ask.top_p = message.top_p();
  }
  if (message.has_min_p()) {
    ask.min_p = message.min_p();
  }
  if (message.has_top_k()) {
    ask.top_k = message.top_k();
  }
  if (message.has_seed()) {
    ask.seed = message.seed();
  }
  if (message.has_frequency_penalty()) {
    ask.frequency_penalty = message.frequency_penalty();
  }
  if (message.has_presence_penalty()) {
    ask.presence_penalty = message.presence_penalty();
  }
  if (message.has_repetition_penalty()) {
    ask.repetition_penalty = message.repetition_penalty();
  }
  if (message.has_n()) {
    ask.n = message.n();
  }
  for (const auto& [id, add] : message.logit_bias()) {
    ask.logit_bias.push_back({.id = id, .add = add});
  }
}

void ReadStop(const v1::StopConditions& message, Ask& ask) {
  if (message.has_max_tokens()) {
    ask.max_tokens = message.max_tokens();
  }
  if (message.has_min_tokens()) {
    ask.min_tokens = message.min_tokens();
  }
  ask.ignore_eos = message.ignore_eos();
  ask.stop.assign(message.stop().begin(), message.stop().end());
  ask.stop_token_ids.assign(message.stop_token_ids().begin(), message.stop_token_ids().end());
}

// What ChatRequest and CompletionRequest name alike.
template <typename Message>
Status ReadCommon(const Message& message, Ask& ask) {
  ask.request_id = message.request_id();
  DSA_RETURN_IF_ERROR(CheckNoRefusedFields(message));
  ask.model = message.model();
  ReadSampling(message.sampling(), ask);
  ReadStop(message.stop(), ask);
  ask.report_cost = message.report_cost();
  ask.logprobs = message.logprobs();
  if (message.has_top_logprobs()) {
    ask.top_logprobs = message.top_logprobs();
  }
  ask.cache_salt = message.cache_salt();
  ask.priority = message.priority();
  return {};
}

// Of ChatRequest and Conversation.
template <typename Message>
Result<Chat> ReadChat(const Message& message, const ChatFieldNames& names) {
  Chat chat;
  for (int i = 0; i < message.messages_size(); ++i) {
    DSA_ASSIGN_OR_RETURN(
        ChatMessage turn,
        ToChatMessage(message.messages(i), fmt::format("{}messages[{}]", names.prefix, i)));
    chat.messages.push_back(std::move(turn));
  }
  for (const v1::Tool& tool : message.tools()) {
    chat.tools.push_back(tool.function_json());
  }
  chat.thinking = message.thinking();
  return chat;
}

}  // namespace

Result<Chat> ToChat(const v1::Conversation& message, const ChatFieldNames& names) {
  return ReadChat(message, names);
}

Status ToAsk(const v1::ChatRequest& message, Ask& ask) {
  DSA_RETURN_IF_ERROR(ReadCommon(message, ask));
  DSA_ASSIGN_OR_RETURN(Chat chat, ReadChat(message, kFieldNames.chat));
  ask.prompts.emplace_back(std::move(chat));
  return {};
}

Status ToAsk(const v1::CompletionRequest& message, Ask& ask) {
  DSA_RETURN_IF_ERROR(ReadCommon(message, ask));
  if (message.has_prompt_logprobs()) {
    ask.prompt_logprobs = message.prompt_logprobs();
  }
  if (message.has_token_ids()) {
    if (message.parse_special()) {
      return InvalidArgument("parse_special: only for text");
    }
    if (message.has_add_bos()) {
      return InvalidArgument("add_bos: only for text");
    }
    ask.prompts.emplace_back(
        IdPrompt(message.token_ids().ids().begin(), message.token_ids().ids().end()));
    return {};
  }
  if (!message.has_text()) {
    return InvalidArgument("prompt: missing: text or token_ids");
  }
  TextPrompt prompt{.text = message.text(), .parse_special = message.parse_special()};
  if (message.has_add_bos()) {
    prompt.add_bos = message.add_bos();
  }
  ask.prompts.emplace_back(std::move(prompt));
  return {};
}

}  // namespace dsa
