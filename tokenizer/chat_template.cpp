#include "tokenizer/chat_template.h"

#include "tokenizer/chat_render.h"

#include <fmt/core.h>

namespace dsa {
namespace chat {
namespace {

std::string_view NameOf(ChatRole role) {
  switch (role) {
    case ChatRole::kSystem: return "system";
    case ChatRole::kDeveloper: return "developer";
    case ChatRole::kUser: return "user";
    case ChatRole::kAssistant: return "assistant";
    case ChatRole::kTool: return "tool";
  }
  DSA_CHECK(false, "ChatRole {}", static_cast<int>(role));
  return "";
}

// Fields that a role does not have.
Status CheckFields(const ChatMessage& message, std::size_t index) {
  const auto misplaced = [&](std::string_view field) {
    return MessageError(index, field, fmt::format("a {} message has none", NameOf(message.role)));
  };
  const bool assistant = message.role == ChatRole::kAssistant;
  const bool instructs = message.role == ChatRole::kSystem || message.role == ChatRole::kDeveloper;
  if (!assistant && !message.reasoning_content.empty()) {
    return misplaced("reasoning_content");
  }
  if (!assistant && !message.tool_calls.empty()) {
    return misplaced("tool_calls");
  }
  if (!instructs && !message.tools.empty()) {
    return misplaced("tools");
  }
  if (!instructs && !message.response_format.empty()) {
    return misplaced("response_format");
  }
  const bool may_lack_content = message.role == ChatRole::kSystem || assistant;
  if (!may_lack_content && !message.content.has_value()) {
    return MessageError(index, "content",
                        fmt::format("a {} message needs text", NameOf(message.role)));
  }
  for (std::size_t call = 0; call < message.tool_calls.size(); ++call) {
    if (message.tool_calls[call].name.empty()) {
      return MessageError(index, fmt::format("tool_calls[{}].function.name", call), "empty");
    }
  }
  return {};
}

// What a reply can go on from.
Status CheckPrefix(const Chat& chat, std::size_t index) {
  const ChatMessage& message = chat.messages[index];
  if (!message.prefix) {
    return {};
  }
  if (message.role != ChatRole::kAssistant || index + 1 < chat.messages.size()) {
    return MessageError(index, "prefix", "only the last message, an assistant's, can be continued");
  }
  if (!message.tool_calls.empty()) {
    return MessageError(index, "prefix", "tool_calls cannot be continued");
  }
  if (!message.content.has_value() && !chat.thinking) {
    return MessageError(index, "content", "a message that is continued needs text");
  }
  if (chat.thinking && message.reasoning_content.empty()) {
    return MessageError(index, "reasoning_content",
                        "empty: with thinking on, a message that is continued needs it");
  }
  return {};
}

// The results of a call message follow it directly, as many as there are calls.  A call message
// at the very end still waits for them.
Status CheckResults(const Chat& chat, std::size_t index) {
  const ChatMessage& message = chat.messages[index];
  if (message.role == ChatRole::kTool) {
    const ResultPlace place = PlaceOf(chat, index);
    if (place.number > place.count) {
      return MessageError(index, "role",
                          fmt::format("tool result {} of an assistant message with {} tool calls",
                                      place.number, place.count));
    }
    return {};
  }
  std::size_t results = 0;
  while (index + results + 1 < chat.messages.size() &&
         chat.messages[index + results + 1].role == ChatRole::kTool) {
    ++results;
  }
  const bool last = index + 1 == chat.messages.size();
  if (!last && results < message.tool_calls.size()) {
    return MessageError(
        index, "tool_calls",
        fmt::format("{} calls, but {} results follow", message.tool_calls.size(), results));
  }
  return {};
}

}  // namespace

void PromptWriter::Template(std::string_view text) {
  if (text.empty()) {
    return;
  }
  const std::size_t begin = prompt_.text.size();
  prompt_.text += text;
  std::vector<TextRange>& ranges = prompt_.template_ranges;
  if (!ranges.empty() && ranges.back().end == begin) {
    ranges.back().end = prompt_.text.size();
  } else {
    ranges.push_back({.begin = begin, .end = prompt_.text.size()});
  }
}

void PromptWriter::Content(std::string_view text) {
  prompt_.text += text;
}

Error MessageError(std::size_t index, std::string_view field, std::string_view what) {
  return InvalidArgument(fmt::format("messages[{}].{}: {}", index, field, what));
}

ResultPlace PlaceOf(const Chat& chat, std::size_t index) {
  std::size_t before = index;
  while (before > 0 && chat.messages[before].role == ChatRole::kTool) {
    --before;
  }
  return {.number = index - before, .count = chat.messages[before].tool_calls.size()};
}

Status CheckChat(const Chat& chat) {
  if (chat.messages.empty()) {
    return InvalidArgument("messages: empty, at least one is needed");
  }
  for (std::size_t index = 0; index < chat.messages.size(); ++index) {
    DSA_RETURN_IF_ERROR(CheckFields(chat.messages[index], index));
    DSA_RETURN_IF_ERROR(CheckResults(chat, index));
    DSA_RETURN_IF_ERROR(CheckPrefix(chat, index));
  }
  return {};
}

}  // namespace chat

bool BeginsReasoning(const Chat& chat) {
  const bool continued = !chat.messages.empty() && chat.messages.back().prefix;
  return chat.thinking && !(continued && chat.messages.back().content.has_value());
}

Result<RenderedPrompt> RenderChat(const Chat& chat, ChatFormat format) {
  DSA_RETURN_IF_ERROR(chat::CheckChat(chat));
  switch (format) {
    case ChatFormat::kV32: return chat::RenderV32(chat);
    case ChatFormat::kV31: return chat::RenderV31(chat);
  }
  DSA_CHECK(false, "ChatFormat {}", static_cast<int>(format));
  return InvalidArgument("");
}

}  // namespace dsa
