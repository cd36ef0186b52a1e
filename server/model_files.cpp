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

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

// The keys of tokenizer_config.json that matter here.
struct TokenizerConfig {
  std::string chat_template;  // empty: none
  std::string bos{kDefaultBos};
  std::optional<bool> add_bos;
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
  if (object.Has("chat_template")) {
    DSA_ASSIGN_OR_RETURN(config.chat_template, object.ReadString("chat_template"));
  }
  if (object.Has("bos_token")) {
    DSA_ASSIGN_OR_RETURN(config.bos, ReadToken(object, "bos_token"));
  }
  if (object.Has("add_bos_token")) {
    DSA_ASSIGN_OR_RETURN(config.add_bos, object.ReadBool("add_bos_token"));
  }
  return config;
}

// V3.2 and Speciale come without a template, V3.2-Exp and V3.1 with one that knows thinking; the
// older V3 and R1 have templates of their own that are not known here.
std::optional<ChatFormat> DetectFormat(Architecture architecture,
                                       const std::string& chat_template) {
  switch (architecture) {
    case Architecture::kDeepseekV32:
      return chat_template.empty() ? ChatFormat::kV32 : ChatFormat::kV31;
    case Architecture::kDeepseekV3:
      if (chat_template.find("thinking") != std::string::npos) {
        return ChatFormat::kV31;
      }
      return std::nullopt;
    case Architecture::kGlmMoeDsa: return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

Result<ModelText> LoadModelText(const ModelTextOptions& options, const ModelConfig& model) {
  ModelText text;
  std::string path = options.tokenizer_path;
  if (path.empty()) {
    path = options.model_folder + "/tokenizer.json";
    if (!Exists(path)) {
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
  text.add_bos = text.bos.has_value() && config.add_bos.value_or(true);
  if (options.chat_format == "auto") {
    text.chat_format = DetectFormat(model.architecture, config.chat_template);
  } else if (options.chat_format != "none") {
    text.chat_format = options.chat_format == "v3.2" ? ChatFormat::kV32 : ChatFormat::kV31;
  }
  return text;
}

}  // namespace dsa
