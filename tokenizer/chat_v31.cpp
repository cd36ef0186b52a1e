// The chat format of DeepSeek-V3.1, V3.1-Terminus and V3.2-Exp: the Jinja template of V3.2-Exp's
// tokenizer_config.json, whose output equals V3.1's where that one has a defined output.
#include "tokenizer/chat_render.h"
#include "tokenizer/python_json.h"

#include <fmt/core.h>

namespace dsa::chat {
namespace {

constexpr std::string_view kCallsBegin = "<｜tool▁calls▁begin｜>";
constexpr std::string_view kCallsEnd = "<｜tool▁calls▁end｜>";
constexpr std::string_view kCallBegin = "<｜tool▁call▁begin｜>";
constexpr std::string_view kCallEnd = "<｜tool▁call▁end｜>";
constexpr std::string_view kSeparator = "<｜tool▁sep｜>";
constexpr std::string_view kOutputBegin = "<｜tool▁output▁begin｜>";
constexpr std::string_view kOutputEnd = "<｜tool▁output▁end｜>";

// The template renders no tool definitions; the model card of V3.1 gives this form for them, behind
// the system prompt.
constexpr std::string_view kV31ToolsBegin = "## Tools\nYou have access to the following tools:\n\n";
constexpr std::string_view kV31ToolsEnd =
    R"(IMPORTANT: ALWAYS adhere to this exact format for tool use:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>{additional_tool_calls}<｜tool▁calls▁end｜>

Where:
- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces)";

class V31Renderer final {
 public:
  explicit V31Renderer(const Chat& chat) : chat_(chat) {}

  Result<RenderedPrompt> Run() {
    writer_.Template(kBegin);
    DSA_RETURN_IF_ERROR(System());
    for (std::size_t index = 0; index < chat_.messages.size(); ++index) {
      DSA_RETURN_IF_ERROR(Message(index));
    }
    // The model goes on by itself behind a tool's output, or from a message that is continued.
    if (previous_ != Previous::kTool && !chat_.messages.back().prefix) {
      writer_.Template(kAssistant);
      writer_.Template(chat_.thinking ? kThinkBegin : kThinkEnd);
    }
    return writer_.Take();
  }

 private:
  // What was written before the message at hand, system messages aside.
  enum class Previous { kNothing, kOnlySystem, kUser, kAssistant, kTool };

  // All system messages, wherever they stand, and the tools.
  Status System() {
    std::vector<std::string> tools = chat_.tools;
    for (std::size_t index = 0; index < chat_.messages.size(); ++index) {
      const ChatMessage& message = chat_.messages[index];
      if (message.role != ChatRole::kSystem) {
        continue;
      }
      if (!message.response_format.empty()) {
        return MessageError(index, "response_format", "chat format v3.1 has none");
      }
      if (!message.tools.empty() && !tools.empty()) {
        return MessageError(index, "tools", "tools stand elsewhere too");
      }
      tools = message.tools.empty() ? tools : message.tools;
      writer_.Template(previous_ == Previous::kOnlySystem ? "\n\n" : "");
      writer_.Content(message.content.value_or(""));
      previous_ = Previous::kOnlySystem;
    }
    return tools.empty() ? Status() : Tools(tools);
  }

  Status Tools(const std::vector<std::string>& tools) {
    writer_.Template("\n\n");
    writer_.Template(kV31ToolsBegin);
    for (std::size_t i = 0; i < tools.size(); ++i) {
      const std::string path = fmt::format("tools[{}].function", i);
      DSA_ASSIGN_OR_RETURN(const PythonValue tool, ParsePython(tools[i], path));
      const PythonValue* name = tool.Find("name");
      const PythonValue* description = tool.Find("description");
      const PythonValue* parameters = tool.Find("parameters");
      if (name == nullptr || name->kind != PythonValue::Kind::kString) {
        return InvalidArgument(fmt::format("{}.name: not a string", path));
      }
      if (description != nullptr && description->kind != PythonValue::Kind::kString) {
        return InvalidArgument(fmt::format("{}.description: not a string", path));
      }
      writer_.Template("### ");
      writer_.Content(name->text);
      writer_.Template("\nDescription: ");
      writer_.Content(description == nullptr ? "" : description->text);
      writer_.Template("\n\nParameters: ");
      writer_.Content(parameters == nullptr ? "{}" : DumpPython(*parameters));
      writer_.Template("\n\n");
    }
    writer_.Template(kV31ToolsEnd);
    return {};
  }

  Status Message(std::size_t index) {
    const ChatMessage& message = chat_.messages[index];
    switch (message.role) {
      case ChatRole::kSystem: return {};
      case ChatRole::kDeveloper:
        return MessageError(index, "role", "chat format v3.1 has no developer role");
      case ChatRole::kUser:
        writer_.Template(kUser);
        writer_.Content(*message.content);
        previous_ = Previous::kUser;
        return {};
      case ChatRole::kAssistant:
        if (message.prefix) {
          Continued(message);
          return {};
        }
        DSA_RETURN_IF_ERROR(message.tool_calls.empty() ? Answer(index) : Calls(message));
        previous_ = Previous::kAssistant;
        return {};
      case ChatRole::kTool:
        writer_.Template(kOutputBegin);
        writer_.Content(*message.content);
        writer_.Template(kOutputEnd);
        previous_ = Previous::kTool;
        return {};
    }
    return {};
  }

  Status Answer(std::size_t index) {
    const ChatMessage& message = chat_.messages[index];
    if (!message.content.has_value()) {
      return MessageError(index, "content", "an assistant message without tool_calls needs text");
    }
    if (previous_ == Previous::kUser) {
      writer_.Template(kAssistant);
      writer_.Template(kThinkEnd);
    }
    std::string_view content = *message.content;
    const std::size_t think_end = content.find(kThinkEnd);
    if (previous_ != Previous::kTool && think_end != std::string_view::npos) {
      content.remove_prefix(think_end + kThinkEnd.size());
    }
    writer_.Content(content);
    writer_.Template(kEnd);
    return {};
  }

  // As the model's own turn would begin.  The template has a place for such a message, but no form
  // for its reasoning: here it stands where the model writes it.
  void Continued(const ChatMessage& message) {
    if (previous_ != Previous::kTool) {
      writer_.Template(kAssistant);
      writer_.Template(chat_.thinking ? kThinkBegin : kThinkEnd);
    }
    if (chat_.thinking) {
      writer_.Content(message.reasoning_content);
      writer_.Template(message.content.has_value() ? kThinkEnd : "");
    }
    writer_.Content(message.content.value_or(""));
  }

  Status Calls(const ChatMessage& message) {
    if (previous_ == Previous::kUser || previous_ == Previous::kOnlySystem) {
      writer_.Template(kAssistant);
      writer_.Template(kThinkEnd);
    }
    writer_.Content(message.content.value_or(""));
    writer_.Template(kCallsBegin);
    for (const ToolCall& call : message.tool_calls) {
      writer_.Template(kCallBegin);
      writer_.Content(call.name);
      writer_.Template(kSeparator);
      writer_.Content(call.arguments);
      writer_.Template(kCallEnd);
    }
    writer_.Template(kCallsEnd);
    writer_.Template(kEnd);
    return {};
  }

  const Chat& chat_;
  Previous previous_ = Previous::kNothing;
  PromptWriter writer_;
};

}  // namespace

Result<RenderedPrompt> RenderV31(const Chat& chat) {
  return V31Renderer(chat).Run();
}

}  // namespace dsa::chat
