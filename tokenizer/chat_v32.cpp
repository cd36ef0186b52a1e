// The chat format of DeepSeek-V3.2: no control token for tools, but DSML markup.  After
// encoding_dsv32 of the model's repository.
#include "tokenizer/chat_render.h"
#include "tokenizer/python_json.h"

#include <optional>

#include <fmt/core.h>

namespace dsa::chat {
namespace {

// What the model was trained on, byte for byte.
constexpr std::string_view kV32ToolsBegin = R"(## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
)";
constexpr std::string_view kV32ToolsEnd = "\n</functions>\n";
constexpr std::string_view kResponseFormat =
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

class V32Renderer final {
 public:
  explicit V32Renderer(const Chat& chat) : chat_(chat), last_(LastRequest(chat)) {}

  Result<RenderedPrompt> Run() {
    writer_.Template(kBegin);
    const std::optional<std::size_t> first_system = FirstSystem();
    if (!chat_.tools.empty() && !first_system.has_value()) {
      writer_.Template("\n\n");
      DSA_RETURN_IF_ERROR(Tools(chat_.tools, "tools"));
    }
    for (std::size_t index = 0; index < chat_.messages.size(); ++index) {
      DSA_RETURN_IF_ERROR(Message(index, first_system == index));
    }
    return writer_.Take();
  }

 private:
  // The last message that asks: a user's or a developer's; before all messages where there is none.
  static std::optional<std::size_t> LastRequest(const Chat& chat) {
    for (std::size_t index = chat.messages.size(); index-- > 0;) {
      const ChatRole role = chat.messages[index].role;
      if (role == ChatRole::kUser || role == ChatRole::kDeveloper) {
        return index;
      }
    }
    return std::nullopt;
  }

  std::optional<std::size_t> FirstSystem() const {
    for (std::size_t index = 0; index < chat_.messages.size(); ++index) {
      if (chat_.messages[index].role == ChatRole::kSystem) {
        return index;
      }
    }
    return std::nullopt;
  }

  // Reasoning is kept within the turn of the last request.
  bool AfterLast(std::size_t index) const { return !last_.has_value() || index > *last_; }

  Status Message(std::size_t index, bool first_system) {
    const ChatMessage& message = chat_.messages[index];
    switch (message.role) {
      case ChatRole::kSystem:
        if (first_system && !chat_.tools.empty() && !message.tools.empty()) {
          return MessageError(index, "tools", "tools stand at the top level too");
        }
        writer_.Content(message.content.value_or(""));
        return Instructions(index,
                            first_system && !chat_.tools.empty() ? chat_.tools : message.tools);
      case ChatRole::kDeveloper: return Developer(index);
      case ChatRole::kUser:
        writer_.Template(kUser);
        writer_.Content(*message.content);
        OpenTurn(index);
        return {};
      case ChatRole::kAssistant: return Assistant(index);
      case ChatRole::kTool: ToolResult(index); return {};
    }
    return {};
  }

  // The assistant's turn after the request at `index`.
  void OpenTurn(std::size_t index) {
    writer_.Template(kAssistant);
    writer_.Template(chat_.thinking && last_ == index ? kThinkBegin : kThinkEnd);
  }

  Status Developer(std::size_t index) {
    const ChatMessage& message = chat_.messages[index];
    if (message.content->empty()) {
      return MessageError(index, "content", "a developer message needs text");
    }
    if (last_ != index) {
      return MessageError(index, "role",
                          "a developer message is supported only as the last request");
    }
    writer_.Template(kUser);
    DSA_RETURN_IF_ERROR(Instructions(index, message.tools));
    writer_.Template("\n\n# The user's message is: ");
    writer_.Content(*message.content);
    OpenTurn(index);
    return {};
  }

  Status Instructions(std::size_t index, const std::vector<std::string>& tools) {
    if (!tools.empty()) {
      writer_.Template("\n\n");
      DSA_RETURN_IF_ERROR(Tools(tools, fmt::format("messages[{}].tools", index)));
    }
    const std::string& format = chat_.messages[index].response_format;
    if (!format.empty()) {
      DSA_ASSIGN_OR_RETURN(const PythonValue value,
                           ParsePython(format, fmt::format("messages[{}].response_format", index)));
      writer_.Template("\n\n");
      writer_.Template(kResponseFormat);
      writer_.Content(DumpPython(value));
    }
    return {};
  }

  Status Tools(const std::vector<std::string>& tools, const std::string& path) {
    writer_.Template(kV32ToolsBegin);
    for (std::size_t i = 0; i < tools.size(); ++i) {
      DSA_ASSIGN_OR_RETURN(const PythonValue tool,
                           ParsePython(tools[i], fmt::format("{}[{}].function", path, i)));
      writer_.Template(i == 0 ? "" : "\n");
      writer_.Content(DumpPython(tool));
    }
    writer_.Template(kV32ToolsEnd);
    return {};
  }

  Status Assistant(std::size_t index) {
    const ChatMessage& message = chat_.messages[index];
    if (chat_.thinking && AfterLast(index)) {
      if (message.reasoning_content.empty() && message.tool_calls.empty()) {
        return MessageError(index, "reasoning_content",
                            "empty: with thinking on, an assistant message after the last user "
                            "message needs it or tool_calls");
      }
      writer_.Content(message.reasoning_content);
      if (message.prefix && !message.content.has_value()) {
        return {};
      }
      writer_.Template(kThinkEnd);
    }
    writer_.Content(message.content.value_or(""));
    if (!message.tool_calls.empty()) {
      writer_.Template("\n\n<｜DSML｜function_calls>\n");
      for (std::size_t call = 0; call < message.tool_calls.size(); ++call) {
        DSA_RETURN_IF_ERROR(Call(index, call));
      }
      writer_.Template("</｜DSML｜function_calls>");
    }
    writer_.Template(message.prefix ? "" : kEnd);
    return {};
  }

  Status Call(std::size_t index, std::size_t number) {
    const ToolCall& call = chat_.messages[index].tool_calls[number];
    const std::string path =
        fmt::format("messages[{}].tool_calls[{}].function.arguments", index, number);
    DSA_ASSIGN_OR_RETURN(const PythonValue arguments, ParsePython(call.arguments, path));
    if (arguments.kind != PythonValue::Kind::kObject) {
      return InvalidArgument(fmt::format("{}: not the text of a JSON object", path));
    }
    writer_.Template("<｜DSML｜invoke name=\"");
    writer_.Content(call.name);
    writer_.Template("\">\n");
    for (std::size_t i = 0; i < arguments.items.size(); ++i) {
      const PythonValue& value = arguments.items[i];
      const bool string = value.kind == PythonValue::Kind::kString;
      writer_.Template(i == 0 ? "" : "\n");
      writer_.Template("<｜DSML｜parameter name=\"");
      writer_.Content(arguments.keys[i]);
      writer_.Template(string ? "\" string=\"true\">" : "\" string=\"false\">");
      writer_.Content(string ? value.text : DumpPython(value));
      writer_.Template("</｜DSML｜parameter>");
    }
    writer_.Template("\n</｜DSML｜invoke>\n");
    return {};
  }

  void ToolResult(std::size_t index) {
    const ResultPlace place = PlaceOf(chat_, index);
    if (place.number == 1) {
      writer_.Template("\n\n<function_results>");
    }
    writer_.Template("\n<result>");
    writer_.Content(*chat_.messages[index].content);
    writer_.Template("</result>");
    if (place.number == place.count) {
      writer_.Template("\n</function_results>\n\n");
      writer_.Template(chat_.thinking && AfterLast(index) ? kThinkBegin : kThinkEnd);
    }
  }

  const Chat& chat_;
  std::optional<std::size_t> last_;
  PromptWriter writer_;
};

}  // namespace

Result<RenderedPrompt> RenderV32(const Chat& chat) {
  return V32Renderer(chat).Run();
}

}  // namespace dsa::chat
