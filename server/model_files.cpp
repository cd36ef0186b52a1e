#include "server/model_files.h"

#include "common/file.h"
#include "common/json.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kFileBytesMax = std::int64_t{16} << 20;
constexpr std::string_view kDefaultBos = "<｜begin▁of▁sentence｜>";

// Also a link that leads nowhere, which whoever opens it refuses.
bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(std::filesystem::symlink_status(path, error));
}

// The keys of tokenizer_config.json that matter here.
struct TokenizerConfig {
  std::string bos{kDefaultBos};
  std::optional<bool> add_bos;
  std::string tokenizer_class;
};

// A token is a string, or an object with its content.
Result<std::string> ReadToken(JsonObject& object, std::string_view key) {
  DSA_ASSIGN_OR_RETURN(const Json* value, object.ReadAny(key));
  if (value->is_object()) {
    DSA_ASSIGN_OR_RETURN(JsonObject token, object.ReadObject(key));
    return token.ReadString("content");
  }
  return object.ReadString(key);
}

Result<TokenizerConfig> ReadTokenizerConfig(const std::string& folder) {
  TokenizerConfig config;
  const std::string path = folder + "/tokenizer_config.json";
  if (!Exists(path)) {
    return config;
  }
  DSA_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kFileBytesMax));
  DSA_ASSIGN_OR_RETURN(const Json document, ParseJson(text, path));
  DSA_ASSIGN_OR_RETURN(JsonObject object, JsonObject::From(document, path, ""));
  if (object.Has("bos_token")) {
    DSA_ASSIGN_OR_RETURN(config.bos, ReadToken(object, "bos_token"));
  }
  if (object.Has("add_bos_token")) {
    DSA_ASSIGN_OR_RETURN(config.add_bos, object.ReadBool("add_bos_token"));
  }
  if (object.Has("add_eos_token")) {
    DSA_ASSIGN_OR_RETURN(const bool add_eos, object.ReadBool("add_eos_token"));
    if (add_eos) {
      return object.MakeError("add_eos_token", "true is not supported");
    }
  }
  if (object.Has("tokenizer_class")) {
    DSA_ASSIGN_OR_RETURN(config.tokenizer_class, object.ReadString("tokenizer_class"));
  }
  return config;
}

// V3.2 and Speciale are published without a template.
std::optional<ChatFormat> FormatWithoutTemplate(Architecture architecture) {
  return architecture == Architecture::kDeepseekV32 ? std::optional(ChatFormat::kV32)
                                                    : std::nullopt;
}

Result<ChatFormatChoice> ChooseFormat(const ModelTextOptions& options, Architecture architecture,
                                      const Tokenizer& tokenizer) {
  if (options.chat_format == "auto") {
    return FindChatFormat(options.model_folder, tokenizer, FormatWithoutTemplate(architecture));
  }
  const std::optional<ChatFormat> format = ParseChatFormat(options.chat_format);
  const Status tokens = format ? CheckChatTokens(tokenizer) : Status();
  if (!tokens.ok()) {
    return InvalidArgument(
        fmt::format("chat_format: \"{}\": {}", options.chat_format, tokens.error().message));
  }
  return ChatFormatChoice{.format = format, .reason = "by chat_format"};
}

// Whether a text begins with the begin-of-sentence token: tokenizer_config.json says so, or
// tokenizer.json's template, or the class that the file was made for, as the libraries that read
// these files have it.
Result<bool> ReadAddBos(const Tokenizer& tokenizer, const TokenizerConfig& config,
                        std::optional<TokenId> bos, const std::string& path) {
  const std::optional<TokenId> prefix = tokenizer.template_prefix();
  if (prefix.has_value() && prefix != bos) {
    return InvalidArgument(
        fmt::format("{}: post_processor: puts id {} before a text, which is not "
                    "the begin-of-sentence token {}",
                    path, Value(*prefix), config.bos));
  }
  if (config.add_bos.has_value()) {
    if (*config.add_bos && !bos.has_value()) {
      return InvalidArgument(fmt::format(
          "tokenizer_config.json: add_bos_token: true, but {} has no token {}", path, config.bos));
    }
    return *config.add_bos;
  }
  if (tokenizer.has_template()) {
    return prefix.has_value();
  }
  const bool llama =
      config.tokenizer_class.empty() || config.tokenizer_class.starts_with("LlamaTokenizer");
  return llama && bos.has_value();
}

}  // namespace

Result<ModelText> LoadModelText(const ModelTextOptions& options, const ModelConfig& model) {
  ModelText text;
  std::string path = options.tokenizer_path;
  if (path.empty()) {
    path = options.model_folder + "/tokenizer.json";
    if (!Exists(path)) {
      text.chat.reason = "no tokenizer";
      return text;
    }
  }
  DSA_ASSIGN_OR_RETURN(text.tokenizer, Tokenizer::Load(path));
  if (text.tokenizer->size() > model.vocabulary) {
    return InvalidArgument(fmt::format("{}: {} ids, but the model's vocabulary has {}", path,
                                       text.tokenizer->size(), model.vocabulary));
  }
  DSA_ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(options.model_folder));
  text.bos = text.tokenizer->AddedToken(config.bos);
  DSA_ASSIGN_OR_RETURN(text.add_bos, ReadAddBos(*text.tokenizer, config, text.bos, path));
  DSA_ASSIGN_OR_RETURN(text.chat, ChooseFormat(options, model.architecture, *text.tokenizer));
  return text;
}

std::string ModelNameOf(const std::string& folder) {
  std::error_code error;  // the current folder may be gone
  const auto absolute = std::filesystem::absolute(folder, error);
  const auto path = (error ? std::filesystem::path(folder) : absolute).lexically_normal();
  const std::string name = path.has_filename() ? path.filename() : path.parent_path().filename();
  return name.empty() || name == "." || name == ".." ? "model" : name;
}

}  // namespace dsa
