// Messages to prompt text, by the format the model was trained on.  Pure functions; thread-safe.
#pragma once

#include "common/status.h"
#include "tokenizer/tokenizer.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

enum class ChatFormat : std::uint8_t {
  kV32,  // DeepSeek-V3.2 and Speciale: DSML tool calls, thinking
  kV31,  // DeepSeek-V3.1, V3.1-Terminus and V3.2-Exp
};

enum class ChatRole : std::uint8_t { kSystem, kDeveloper, kUser, kAssistant, kTool };

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // the text of a JSON object
};

struct ChatMessage {
  ChatRole role = ChatRole::kUser;
  std::optional<std::string> content{};
  std::string reasoning_content{};     // assistant only
  std::vector<ToolCall> tool_calls{};  // assistant only
  std::string tool_call_id{};          // tool only; results belong to calls by position, not by id
  std::vector<std::string> tools{};    // system and developer only: as Chat::tools
  std::string response_format{};       // system and developer only: the text of a JSON value
  // Assistant and last only: the reply goes on from here; without content, in its reasoning.
  bool prefix = false;
};

struct Chat {
  std::vector<ChatMessage> messages{};
  // The text of each "function" object, keys in client order.  They belong to the first system
  // message, or to an empty one before all others.
  std::vector<std::string> tools{};
  bool thinking = false;
};

// A prompt and the parts of it that the template wrote.  Added tokens match only inside those, so
// a user who types a control token gets plain text.
struct RenderedPrompt {
  std::string text;
  std::vector<TextRange> template_ranges;
};

// Whether the reply begins within reasoning.
bool BeginsReasoning(const Chat& chat);

// INVALID_ARGUMENT naming the message and field: a conversation that the format cannot express.
Result<RenderedPrompt> RenderChat(const Chat& chat, ChatFormat format);

// A chat in OpenAI's JSON shape: {"messages": [...], "thinking": bool}, content null, text or
// text parts, tools on a system message (or at the top level).  INVALID_ARGUMENT naming the field.
Result<Chat> ChatFromJson(std::string_view json);

}  // namespace dsa
