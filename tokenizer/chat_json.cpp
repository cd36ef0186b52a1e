// Conversations in the JSON shape of OpenAI's chat completions.
#include "tokenizer/chat_json.h"

#include "common/json.h"

#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

using Kind = PythonValue::Kind;

// One object of the conversation; remembers its path for messages.
class Fields final {
 public:
  static Result<Fields> From(const PythonValue& value, std::string path) {
    if (value.kind != Kind::kObject) {
      return InvalidArgument(fmt::format("{}: not an object", path.empty() ? "chat" : path));
    }
    return Fields(value, std::move(path));
  }

  // Nullptr where the key is absent or null.
  const PythonValue* Find(std::string_view key) const {
    const PythonValue* value = value_->Find(key);
    return value == nullptr || value->kind == Kind::kNull ? nullptr : value;
  }

  Result<std::string> Text(std::string_view key) const {
    const PythonValue* value = Find(key);
    if (value == nullptr || value->kind != Kind::kString) {
      return MakeError(key, value == nullptr ? "missing" : "not a string");
    }
    return value->text;
  }

  Result<std::string> TextOrEmpty(std::string_view key) const {
    return Find(key) == nullptr ? Result<std::string>(std::string()) : Text(key);
  }

  // Elements of an array; none where the key is absent.
  Result<const std::vector<PythonValue>*> Array(std::string_view key) const {
    static const std::vector<PythonValue> none;
    const PythonValue* value = Find(key);
    if (value != nullptr && value->kind != Kind::kArray) {
      return MakeError(key, "not an array");
    }
    return value == nullptr ? &none : &value->items;
  }

  // Refuses a key outside of `known` that says anything: clients send null, "" and [] for what they
  // do not use.
  Status CheckKeys(const std::vector<std::string_view>& known) const {
    for (std::size_t i = 0; i < value_->keys.size(); ++i) {
      const PythonValue& value = value_->items[i];
      const bool silent = value.kind == Kind::kNull ||
                          (value.kind == Kind::kArray && value.items.empty()) ||
                          (value.kind == Kind::kString && value.text.empty());
      bool expected = silent;
      for (const std::string_view key : known) {
        expected = expected || key == value_->keys[i];
      }
      if (!expected) {
        return MakeError(OneLine(value_->keys[i]), "not supported");
      }
    }
    return {};
  }

  std::string PathOf(std::string_view key) const {
    return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
  }
  Error MakeError(std::string_view key, std::string_view what) const {
    return InvalidArgument(fmt::format("{}: {}", PathOf(key), what));
  }

 private:
  Fields(const PythonValue& value, std::string path) : value_(&value), path_(std::move(path)) {}

  const PythonValue* value_;
  std::string path_;
};

Result<ChatRole> ReadRole(const Fields& fields) {
  constexpr std::pair<std::string_view, ChatRole> kRoles[] = {
      {"system", ChatRole::kSystem}, {"developer", ChatRole::kDeveloper},
      {"user", ChatRole::kUser},     {"assistant", ChatRole::kAssistant},
      {"tool", ChatRole::kTool},
  };
  DSA_ASSIGN_OR_RETURN(const std::string name, fields.Text("role"));
  for (const auto& [known, role] : kRoles) {
    if (name == known) {
      return role;
    }
  }
  return fields.MakeError(
      "role",
      fmt::format("\"{}\" is not one of system, developer, user, assistant, tool", OneLine(name)));
}

// What Python takes for true: the model's own encoder leaves out a response_format that is not.
bool IsTrue(const PythonValue& value) {
  switch (value.kind) {
    case Kind::kNull: return false;
    case Kind::kBool: return value.text == "true";
    case Kind::kNumber: return value.text.find_first_of("123456789") < value.text.find('e');
    case Kind::kString: return !value.text.empty();
    case Kind::kArray:
    case Kind::kObject: return !value.items.empty();
  }
  return false;
}

// Null, text, or text parts, which are joined as they stand.
Result<std::optional<std::string>> ReadContent(const Fields& fields) {
  const PythonValue* content = fields.Find("content");
  if (content == nullptr) {
    return std::optional<std::string>();
  }
  if (content->kind == Kind::kString) {
    return std::optional(content->text);
  }
  if (content->kind != Kind::kArray) {
    return fields.MakeError("content", "not null, a string or an array of text parts");
  }
  std::string text;
  for (std::size_t i = 0; i < content->items.size(); ++i) {
    const std::string path = fmt::format("{}[{}]", fields.PathOf("content"), i);
    DSA_ASSIGN_OR_RETURN(const Fields part, Fields::From(content->items[i], path));
    DSA_ASSIGN_OR_RETURN(const std::string type, part.Text("type"));
    if (type != "text") {
      return part.MakeError(
          "type", fmt::format("only text parts are supported, not \"{}\"", OneLine(type)));
    }
    DSA_ASSIGN_OR_RETURN(const std::string piece, part.Text("text"));
    DSA_RETURN_IF_ERROR(part.CheckKeys({"type", "text"}));
    text += piece;
  }
  return std::optional(std::move(text));
}

// [{"type": "function", "function": {...}}, ...]: the inner objects.
Result<std::vector<std::string>> ReadTools(const Fields& fields) {
  DSA_ASSIGN_OR_RETURN(const std::vector<PythonValue>* items, fields.Array("tools"));
  std::vector<std::string> tools;
  for (std::size_t i = 0; i < items->size(); ++i) {
    const std::string path = fmt::format("{}[{}]", fields.PathOf("tools"), i);
    DSA_ASSIGN_OR_RETURN(const Fields tool, Fields::From((*items)[i], path));
    DSA_ASSIGN_OR_RETURN(const std::string type, tool.TextOrEmpty("type"));
    if (!type.empty() && type != "function") {
      return tool.MakeError("type", "only \"function\" is supported");
    }
    DSA_RETURN_IF_ERROR(tool.CheckKeys({"type", "function"}));
    const PythonValue* function = tool.Find("function");
    if (function == nullptr || function->kind != Kind::kObject) {
      return tool.MakeError("function", "not an object");
    }
    tools.push_back(DumpPython(*function));
  }
  return tools;
}

Result<std::vector<ToolCall>> ReadToolCalls(const Fields& fields) {
  DSA_ASSIGN_OR_RETURN(const std::vector<PythonValue>* items, fields.Array("tool_calls"));
  std::vector<ToolCall> calls;
  for (std::size_t i = 0; i < items->size(); ++i) {
    const std::string path = fmt::format("{}[{}]", fields.PathOf("tool_calls"), i);
    DSA_ASSIGN_OR_RETURN(const Fields call, Fields::From((*items)[i], path));
    DSA_ASSIGN_OR_RETURN(std::string id, call.TextOrEmpty("id"));
    DSA_ASSIGN_OR_RETURN(const std::string type, call.TextOrEmpty("type"));
    if (!type.empty() && type != "function") {
      return call.MakeError("type", "only \"function\" is supported");
    }
    DSA_RETURN_IF_ERROR(call.CheckKeys({"id", "type", "function", "index"}));
    const PythonValue* inner = call.Find("function");
    if (inner == nullptr) {
      return call.MakeError("function", "missing");
    }
    DSA_ASSIGN_OR_RETURN(const Fields function, Fields::From(*inner, path + ".function"));
    DSA_ASSIGN_OR_RETURN(std::string name, function.Text("name"));
    DSA_ASSIGN_OR_RETURN(std::string arguments, function.Text("arguments"));
    DSA_RETURN_IF_ERROR(function.CheckKeys({"name", "arguments"}));
    if (arguments.empty()) {  // as some models' calls without any come back
      arguments = "{}";
    }
    calls.push_back(
        {.id = std::move(id), .name = std::move(name), .arguments = std::move(arguments)});
  }
  return calls;
}

Result<ChatMessage> ReadMessage(const PythonValue& value, const std::string& path) {
  DSA_ASSIGN_OR_RETURN(const Fields fields, Fields::From(value, path));
  ChatMessage message;
  DSA_ASSIGN_OR_RETURN(message.role, ReadRole(fields));
  DSA_ASSIGN_OR_RETURN(message.content, ReadContent(fields));
  DSA_ASSIGN_OR_RETURN(message.reasoning_content, fields.TextOrEmpty("reasoning_content"));
  DSA_ASSIGN_OR_RETURN(message.tool_calls, ReadToolCalls(fields));
  DSA_ASSIGN_OR_RETURN(message.tool_call_id, fields.TextOrEmpty("tool_call_id"));
  DSA_ASSIGN_OR_RETURN(message.tools, ReadTools(fields));
  const PythonValue* prefix = fields.Find("prefix");
  if (prefix != nullptr && prefix->kind != Kind::kBool) {
    return fields.MakeError("prefix", "not true or false");
  }
  message.prefix = prefix != nullptr && prefix->text == "true";
  const PythonValue* format = fields.Find("response_format");
  if (format != nullptr && IsTrue(*format)) {
    message.response_format = DumpPython(*format);
  }
  if (message.role != ChatRole::kTool && !message.tool_call_id.empty()) {
    return fields.MakeError("tool_call_id", "belongs to tool messages");
  }
  // Of a participant, or of the function whose call says it already: no prompt has a place for it.
  if (const Result<std::string> name = fields.TextOrEmpty("name"); !name.ok()) {
    return name.error();
  }
  DSA_RETURN_IF_ERROR(
      fields.CheckKeys({"role", "content", "reasoning_content", "tool_calls", "tools",
                        "response_format", "tool_call_id", "prefix", "name"}));
  return message;
}

}  // namespace

Result<Chat> ReadConversation(const PythonValue& document) {
  DSA_ASSIGN_OR_RETURN(const Fields fields, Fields::From(document, ""));
  Chat chat;
  DSA_ASSIGN_OR_RETURN(chat.tools, ReadTools(fields));
  if (fields.Find("messages") == nullptr) {
    return fields.MakeError("messages", "missing");
  }
  DSA_ASSIGN_OR_RETURN(const std::vector<PythonValue>* items, fields.Array("messages"));
  for (std::size_t i = 0; i < items->size(); ++i) {
    DSA_ASSIGN_OR_RETURN(ChatMessage message,
                         ReadMessage((*items)[i], fmt::format("messages[{}]", i)));
    chat.messages.push_back(std::move(message));
  }
  return chat;
}

Result<Chat> ChatFromJson(std::string_view json) {
  DSA_ASSIGN_OR_RETURN(const PythonValue document, ParsePython(json, "chat"));
  DSA_ASSIGN_OR_RETURN(const Fields fields, Fields::From(document, ""));
  DSA_RETURN_IF_ERROR(fields.CheckKeys({"messages", "thinking", "tools"}));
  const PythonValue* thinking = fields.Find("thinking");
  if (thinking != nullptr && thinking->kind != Kind::kBool) {
    return fields.MakeError("thinking", "not true or false");
  }
  DSA_ASSIGN_OR_RETURN(Chat chat, ReadConversation(document));
  chat.thinking = thinking != nullptr && thinking->text == "true";
  return chat;
}

}  // namespace dsa
