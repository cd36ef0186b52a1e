#include "tokenizer/chat_format.h"

#include "common/file.h"
#include "common/json.h"
#include "tokenizer/chat_render.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kTemplateBytesMax = std::int64_t{16} << 20;
constexpr std::string_view kHowToChoose = "choose by chat_format";
// A list without a default is there, and describes nothing that we know.
constexpr std::string_view kNoDefault = "{# no default #}";

struct Template {
  std::string source;  // "chat_template.jinja"
  std::string text;
};

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// The file's text; nullopt where there is none.
Result<std::optional<std::string>> ReadIfThere(const std::string& path) {
  Result<std::string> text = ReadFile(path, kTemplateBytesMax);
  if (text.ok()) {
    return std::optional(std::move(text).value());
  }
  if (text.error().code == ErrorCode::kNotFound) {
    return std::optional<std::string>();
  }
  return text.error();
}

// [{"name": "default", "template": "..."}, ...]: the default, or the only one.
Result<std::string> ReadNamed(const Json& list, const std::string& path) {
  std::string found;
  for (std::size_t i = 0; i < list.size(); ++i) {
    DSA_ASSIGN_OR_RETURN(JsonObject entry,
                         JsonObject::From(list[i], path, fmt::format("chat_template[{}]", i)));
    DSA_ASSIGN_OR_RETURN(const std::string name, entry.ReadString("name"));
    DSA_ASSIGN_OR_RETURN(const std::string text, entry.ReadString("template"));
    if (name == "default" || list.size() == 1) {
      found = text;
    }
  }
  return found;
}

// {"default": "...", ...} means the same.
Result<std::string> ReadNamed(JsonObject& config) {
  DSA_ASSIGN_OR_RETURN(const Json* value, config.ReadAny("chat_template"));
  DSA_ASSIGN_OR_RETURN(JsonObject names, config.ReadObject("chat_template"));
  std::string found;
  for (const auto& [name, text] : value->items()) {
    DSA_ASSIGN_OR_RETURN(std::string read, names.ReadString(name));
    if (name == "default" || value->size() == 1) {
      found = std::move(read);
    }
  }
  return found;
}

// "" for none.
Result<std::string> ReadConfigTemplate(const std::string& text, const std::string& path) {
  DSA_ASSIGN_OR_RETURN(const Json json, ParseJson(text, path));
  DSA_ASSIGN_OR_RETURN(JsonObject config, JsonObject::From(json, path, ""));
  if (!config.Has("chat_template")) {
    return std::string();
  }
  DSA_ASSIGN_OR_RETURN(const Json* value, config.ReadAny("chat_template"));
  if (!value->is_structured()) {
    return config.ReadString("chat_template");
  }
  DSA_ASSIGN_OR_RETURN(std::string found,
                       value->is_array() ? ReadNamed(*value, path) : ReadNamed(config));
  return found.empty() ? std::string(kNoDefault) : std::move(found);
}

// Where newer libraries put named templates, the default of which is chat_template.jinja.  "" for
// none.
Result<std::string> ReadFolderOfTemplates(const std::string& folder) {
  std::error_code ignored;
  std::string found;
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (entry.path().extension() == ".jinja") {
      DSA_ASSIGN_OR_RETURN(found, ReadFile(entry.path().string(), kTemplateBytesMax));
      ++count;
    }
  }
  return count == 0 ? std::string() : count == 1 ? found : std::string(kNoDefault);
}

Result<std::optional<Template>> FindTemplate(const std::string& folder) {
  constexpr std::string_view kJinja = "chat_template.jinja";
  DSA_ASSIGN_OR_RETURN(std::optional<std::string> jinja,
                       ReadIfThere(fmt::format("{}/{}", folder, kJinja)));
  if (jinja) {
    return std::optional(Template{.source = std::string(kJinja), .text = *std::move(jinja)});
  }
  for (const char* name : {"tokenizer_config.json", "chat_template.json"}) {
    const std::string path = fmt::format("{}/{}", folder, name);
    DSA_ASSIGN_OR_RETURN(const std::optional<std::string> file, ReadIfThere(path));
    std::string text;
    if (file) {
      DSA_ASSIGN_OR_RETURN(text, ReadConfigTemplate(*file, path));
    }
    if (!text.empty()) {
      return std::optional(
          Template{.source = fmt::format("{}'s chat_template", name), .text = std::move(text)});
    }
  }
  constexpr std::string_view kNamed = "additional_chat_templates";
  DSA_ASSIGN_OR_RETURN(std::string named,
                       ReadFolderOfTemplates(fmt::format("{}/{}", folder, kNamed)));
  if (!named.empty()) {
    return std::optional(Template{.source = std::string(kNamed), .text = std::move(named)});
  }
  return std::optional<Template>();
}

}  // namespace

std::optional<ChatFormat> ParseChatFormat(std::string_view name) {
  for (const ChatFormat format : {ChatFormat::kV32, ChatFormat::kV31}) {
    if (name == ToString(format)) {
      return format;
    }
  }
  return std::nullopt;
}

std::string_view ToString(ChatFormat format) {
  return format == ChatFormat::kV32 ? "v3.2" : "v3.1";
}

std::optional<ChatFormat> FormatOfTemplate(std::string_view text) {
  if (!Contains(text, chat::kUser) || !Contains(text, chat::kAssistant) ||
      !Contains(text, chat::kThinkEnd)) {
    return std::nullopt;
  }
  // The calls of V3.2 are its own.  V4 has them too, but names their block otherwise.
  if (Contains(text, "｜DSML｜")) {
    return Contains(text, "function_calls") ? std::optional(ChatFormat::kV32) : std::nullopt;
  }
  // V3 and R1 write a call's arguments into a fence, and R1 opens every turn with a line of its
  // own; neither asks whether to think.
  const bool older =
      Contains(text, "```json") || Contains(text, "<think>\n") || Contains(text, R"(<think>\n)");
  return Contains(text, "thinking") && !older ? std::optional(ChatFormat::kV31) : std::nullopt;
}

Status CheckChatTokens(const Tokenizer& tokenizer) {
  for (const std::string_view token : {chat::kBegin, chat::kEnd, chat::kUser, chat::kAssistant,
                                       chat::kThinkBegin, chat::kThinkEnd}) {
    if (!tokenizer.AddedToken(token).has_value()) {
      return InvalidArgument(fmt::format("the tokenizer has no token {}", token));
    }
  }
  return {};
}

Result<ChatFormatChoice> FindChatFormat(const std::string& folder, const Tokenizer& tokenizer,
                                        std::optional<ChatFormat> without_template) {
  DSA_ASSIGN_OR_RETURN(const std::optional<Template> found, FindTemplate(folder));
  const Status tokens = CheckChatTokens(tokenizer);
  if (!tokens.ok()) {
    return ChatFormatChoice{.format = std::nullopt, .reason = tokens.error().message};
  }
  if (!found.has_value()) {
    return ChatFormatChoice{.format = without_template,
                            .reason = without_template
                                          ? "without a chat template, as the model is published"
                                          : fmt::format("no chat template; {}", kHowToChoose)};
  }
  const std::optional<ChatFormat> format = FormatOfTemplate(found->text);
  return ChatFormatChoice{
      .format = format,
      .reason = format ? fmt::format("{} has its marks", found->source)
                       : fmt::format("{} is neither v3.1 nor v3.2, and no other is run; {}",
                                     found->source, kHowToChoose)};
}

}  // namespace dsa
