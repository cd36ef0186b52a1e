#include "server/api/errors.h"
#include "server/grpc/xai/completion.h"
#include "tokenizer/python_json.h"

#include <string_view>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

// What a client may set and would change the answer.
Status CheckXaiDone(const xai_api::GetCompletionsRequest& message) {
  const auto format = message.response_format().format_type();
  const bool plain = format == xai_api::FORMAT_TYPE_INVALID || format == xai_api::FORMAT_TYPE_TEXT;
  const int search = message.search_parameters().mode();
  const std::pair<bool, std::string_view> wanted[] = {
      {!plain, "response_format"},
      {message.has_search_parameters() && search != 0 && search != 1, "search_parameters"},
      {message.has_parallel_tool_calls() && !message.parallel_tool_calls(), "parallel_tool_calls"},
      {message.has_previous_response_id(), "previous_response_id"},
      {message.store_messages(), "store_messages"},
      {message.use_encrypted_content(), "use_encrypted_content"},
      {message.has_max_turns(), "max_turns"},
      {message.has_agent_count() && message.agent_count() != 0, "agent_count"}};
  for (const auto& [set, name] : wanted) {
    if (set) {
      return NotSupportedError(name);
    }
  }
  return {};
}

Result<ChatRole> RoleOf(xai_api::MessageRole role, const std::string& path) {
  switch (role) {
    case xai_api::ROLE_USER: return ChatRole::kUser;
    case xai_api::ROLE_ASSISTANT: return ChatRole::kAssistant;
    case xai_api::ROLE_SYSTEM:
    case xai_api::ROLE_DEVELOPER: return ChatRole::kSystem;
    case xai_api::ROLE_FUNCTION:
    case xai_api::ROLE_TOOL: return ChatRole::kTool;
    default:
      return InvalidArgument(
          fmt::format("{}.role: {} is none of user (1), assistant (2), system (3), function (4), "
                      "tool (5), developer (6)",
                      path, static_cast<int>(role)));
  }
}

Result<ChatMessage> ReadTurn(const xai_api::Message& message, const std::string& path) {
  ChatMessage turn;
  DSA_ASSIGN_OR_RETURN(turn.role, RoleOf(message.role(), path));
  for (int i = 0; i < message.content_size(); ++i) {
    const xai_api::Content& part = message.content(i);
    if (!part.has_text()) {
      return NotSupportedError(fmt::format("{}.content[{}]", path, i));
    }
    turn.content = turn.content.value_or("") + part.text();
  }
  if (!message.encrypted_content().empty()) {
    return NotSupportedError(fmt::format("{}.encrypted_content", path));
  }
  turn.reasoning_content = message.reasoning_content();
  turn.tool_call_id = message.tool_call_id();
  for (int i = 0; i < message.tool_calls_size(); ++i) {
    const xai_api::ToolCall& call = message.tool_calls(i);
    if (!call.has_function()) {
      return InvalidArgument(fmt::format("{}.tool_calls[{}].function: missing", path, i));
    }
    turn.tool_calls.push_back({.id = call.id(),
                               .name = call.function().name(),
                               .arguments = call.function().arguments()});
  }
  // An answer that only calls tools comes back with an empty text.
  if (!turn.tool_calls.empty() && turn.content == "") {
    turn.content = std::nullopt;
  }
  return turn;
}

// OpenAI's "function" object.
Result<std::string> ReadTool(const xai_api::Tool& tool, const std::string& path) {
  if (!tool.has_function()) {
    return NotSupportedError(fmt::format("{}: a tool other than function", path));
  }
  const xai_api::Function& function = tool.function();
  if (function.strict()) {
    return NotSupportedError(path + ".function.strict");
  }
  std::string json = R"({"name": )";
  AppendPythonString(function.name(), json);
  json += R"(, "description": )";
  AppendPythonString(function.description(), json);
  json += R"(, "parameters": )";
  if (function.parameters().empty()) {
    return json + R"({"type": "object", "properties": {}}})";
  }
  DSA_ASSIGN_OR_RETURN(const PythonValue parameters,
                       ParsePython(function.parameters(), path + ".function.parameters"));
  return json + DumpPython(parameters) + "}";
}

Status ReadTools(const xai_api::GetCompletionsRequest& message, Chat& chat) {
  const xai_api::ToolChoice& choice = message.tool_choice();
  if (choice.has_function_name() || choice.mode() == xai_api::TOOL_MODE_REQUIRED) {
    return Error{ErrorCode::kUnimplemented,
                 "tool_choice: a call cannot be forced: only auto and none are supported"};
  }
  for (int i = 0; i < message.tools_size(); ++i) {
    DSA_ASSIGN_OR_RETURN(std::string tool, ReadTool(message.tools(i), fmt::format("tools[{}]", i)));
    if (choice.mode() != xai_api::TOOL_MODE_NONE) {
      chat.tools.push_back(std::move(tool));
    }
  }
  return {};
}

Result<Chat> ReadXaiChat(const xai_api::GetCompletionsRequest& message) {
  Chat chat;
  for (int i = 0; i < message.messages_size(); ++i) {
    DSA_ASSIGN_OR_RETURN(ChatMessage turn,
                         ReadTurn(message.messages(i), fmt::format("messages[{}]", i)));
    chat.messages.push_back(std::move(turn));
  }
  DSA_RETURN_IF_ERROR(ReadTools(message, chat));
  if (message.has_reasoning_effort()) {
    const int effort = message.reasoning_effort();
    if (effort < xai_api::EFFORT_LOW || effort > xai_api::EFFORT_XHIGH) {
      return InvalidArgument(
          fmt::format("reasoning_effort: {} is none of low (1), medium (2), high (3), none (4), "
                      "xhigh (5)",
                      effort));
    }
    chat.thinking = effort != xai_api::EFFORT_NONE;
  }
  return chat;
}

}  // namespace

Status ToAsk(const xai_api::GetCompletionsRequest& message, Ask& ask) {
  DSA_RETURN_IF_ERROR(CheckXaiDone(message));
  ask.model = message.model();
  DSA_ASSIGN_OR_RETURN(Chat chat, ReadXaiChat(message));
  ask.prompts.emplace_back(std::move(chat));
  ask.logprobs = message.logprobs();
  if (message.has_top_logprobs() && (message.logprobs() || message.top_logprobs() != 0)) {
    ask.top_logprobs = message.top_logprobs();
  }
  if (message.has_max_tokens()) {
    ask.max_tokens = message.max_tokens();
  }
  if (message.has_n()) {
    ask.n = message.n();
  }
  if (message.has_seed()) {
    ask.seed = static_cast<std::uint64_t>(std::int64_t{message.seed()});
  }
  if (message.has_frequency_penalty()) {
    ask.frequency_penalty = message.frequency_penalty();
  }
  if (message.has_presence_penalty()) {
    ask.presence_penalty = message.presence_penalty();
  }
  ask.stop.assign(message.stop().begin(), message.stop().end());
  if (message.has_temperature()) {
    ask.temperature = message.temperature();
  }
  if (message.has_top_p()) {
    ask.top_p = message.top_p();
  }
  return {};
}

}  // namespace dsa
