#include "tokenizer/tokenizer_surroundings.h"

#include "common/log.h"

#include <algorithm>

#include <fmt/core.h>

namespace dsa {
namespace {

bool HasType(const Json& object, std::string_view type) {
  return object.is_object() && object.value("type", Json()) == type;
}

// Whether a normalizer leaves every text as it is.
bool IsNeutralNormalizer(const Json& normalizer) {
  if (!HasType(normalizer, "Sequence") || !normalizer.value("normalizers", Json()).is_array()) {
    return false;
  }
  const Json& stages = normalizer["normalizers"];
  return std::all_of(stages.begin(), stages.end(), IsNeutralNormalizer);
}

Status ReadNormalizer(JsonObject& document) {
  if (!document.Has("normalizer")) {
    return ReadNeutral(document, "normalizer", {});
  }
  DSA_ASSIGN_OR_RETURN(const Json* normalizer, document.ReadAny("normalizer"));
  if (!IsNeutralNormalizer(*normalizer)) {
    return document.MakeError("normalizer", fmt::format("{} is not supported", Brief(*normalizer)));
  }
  return {};
}

// {"SpecialToken": {"id": ...}} names an entry of special_tokens, which holds its ids.
Result<std::string> ReadPrefixToken(JsonObject& piece, JsonObject& processor) {
  DSA_ASSIGN_OR_RETURN(JsonObject token, piece.ReadObject("SpecialToken"));
  DSA_ASSIGN_OR_RETURN(const std::string name, token.ReadString("id"));
  DSA_ASSIGN_OR_RETURN(JsonObject specials, processor.ReadObject("special_tokens"));
  DSA_ASSIGN_OR_RETURN(JsonObject special, specials.ReadObject(name));
  DSA_ASSIGN_OR_RETURN(const Json* tokens, special.ReadArray("tokens"));
  if (tokens->size() != 1 || !(*tokens)[0].is_string() ||
      (*tokens)[0].get_ref<const std::string&>().empty()) {
    return special.MakeError("tokens", fmt::format("{} is not one token", Brief(*tokens)));
  }
  return (*tokens)[0].get<std::string>();
}

// "single" is the text, after one token or none; "pair" is for two texts, which nothing here has.
Status ReadTemplate(JsonObject& processor, const std::string& source, const std::string& path,
                    TokenizerSurroundings& surroundings) {
  DSA_ASSIGN_OR_RETURN(const Json* pieces, processor.ReadArray("single"));
  const auto refuse = [&] {
    return processor.MakeError(
        "single",
        fmt::format("{} is not supported, only the text after one token or none", Brief(*pieces)));
  };
  if (pieces->empty() || pieces->size() > 2) {
    return refuse();
  }
  const auto is_text = [](const Json& piece) {
    return piece.is_object() && piece.contains("Sequence") && piece["Sequence"].is_object() &&
           piece["Sequence"].value("id", Json()) == "A";
  };
  if (!is_text(pieces->back())) {
    return refuse();
  }
  std::string prefix;
  if (pieces->size() == 2) {
    DSA_ASSIGN_OR_RETURN(JsonObject first,
                         JsonObject::From((*pieces)[0], source, path + ".single[0]"));
    if (!first.Has("SpecialToken")) {
      return refuse();
    }
    DSA_ASSIGN_OR_RETURN(prefix, ReadPrefixToken(first, processor));
  }
  if (!surroundings.prefix.value_or("").empty() && !prefix.empty()) {
    return processor.MakeError("single", "a second prefix is not supported");
  }
  surroundings.prefix = surroundings.prefix.value_or("") + prefix;
  return {};
}

Status ReadProcessor(const Json& json, const std::string& source, const std::string& path,
                     TokenizerSurroundings& surroundings) {
  DSA_ASSIGN_OR_RETURN(JsonObject processor, JsonObject::From(json, source, path));
  DSA_ASSIGN_OR_RETURN(
      const std::string type,
      processor.ReadChoice("type", {"ByteLevel", "TemplateProcessing", "Sequence"}));
  if (type == "ByteLevel") {  // moves offsets only
    return {};
  }
  if (type == "TemplateProcessing") {
    return ReadTemplate(processor, source, path, surroundings);
  }
  DSA_ASSIGN_OR_RETURN(const Json* stages, processor.ReadArray("processors"));
  for (std::size_t i = 0; i < stages->size(); ++i) {
    DSA_RETURN_IF_ERROR(ReadProcessor((*stages)[i], source,
                                      fmt::format("{}.processors[{}]", path, i), surroundings));
  }
  return {};
}

// ByteLevel, alone or in a Sequence; Fuse joins what is joined anyway.  Tokens become bytes once,
// however often it is said.
Status ReadDecoder(const Json& json, const std::string& source, const std::string& path,
                   bool& byte_level) {
  DSA_ASSIGN_OR_RETURN(JsonObject decoder, JsonObject::From(json, source, path));
  const bool nested = path != "decoder";
  DSA_ASSIGN_OR_RETURN(
      const std::string type,
      decoder.ReadChoice("type", nested ? std::vector<std::string>{"ByteLevel", "Fuse", "Sequence"}
                                        : std::vector<std::string>{"ByteLevel", "Sequence"}));
  byte_level = byte_level || type == "ByteLevel";
  if (type != "Sequence") {
    return {};
  }
  DSA_ASSIGN_OR_RETURN(const Json* stages, decoder.ReadArray("decoders"));
  for (std::size_t i = 0; i < stages->size(); ++i) {
    DSA_RETURN_IF_ERROR(
        ReadDecoder((*stages)[i], source, fmt::format("{}.decoders[{}]", path, i), byte_level));
  }
  if (!nested && !byte_level) {
    return decoder.MakeError("decoders", "no ByteLevel decoder");
  }
  return {};
}

// What a call was last made with when somebody saved the file.  It belongs to calls: no text is cut
// off or filled up here.
Status ReadCallSettings(JsonObject& document, const std::string& source) {
  for (const char* key : {"truncation", "padding"}) {
    if (!document.Has(key)) {
      DSA_RETURN_IF_ERROR(ReadNeutral(document, key, {}));
      continue;
    }
    DSA_ASSIGN_OR_RETURN(const JsonObject setting, document.ReadObject(key));
    static_cast<void>(setting);
    Log(LogLevel::kInfo, "tokenizer: a setting of past calls is ignored",
        {{"file", source}, {"key", key}});
  }
  return {};
}

}  // namespace

Status ReadNeutral(JsonObject& object, std::string_view key, const std::vector<Json>& allowed) {
  const Result<const Json*> value = object.ReadAny(key);
  if (!value.ok() || value.value()->is_null()) {
    return {};
  }
  for (const Json& choice : allowed) {
    if (*value.value() == choice) {
      return {};
    }
  }
  return object.MakeError(key, fmt::format("{} is not supported", Brief(*value.value())));
}

Result<TokenizerSurroundings> ReadTokenizerSurroundings(JsonObject& document,
                                                        const std::string& source) {
  TokenizerSurroundings surroundings;
  DSA_RETURN_IF_ERROR(ReadNeutral(document, "version", {"1.0"}));
  DSA_RETURN_IF_ERROR(ReadCallSettings(document, source));
  DSA_RETURN_IF_ERROR(ReadNormalizer(document));
  if (document.Has("post_processor")) {
    DSA_ASSIGN_OR_RETURN(const Json* processor, document.ReadAny("post_processor"));
    DSA_RETURN_IF_ERROR(ReadProcessor(*processor, source, "post_processor", surroundings));
  } else {
    DSA_RETURN_IF_ERROR(ReadNeutral(document, "post_processor", {}));
  }
  DSA_ASSIGN_OR_RETURN(const Json* decoder, document.ReadAny("decoder"));
  bool byte_level = false;
  DSA_RETURN_IF_ERROR(ReadDecoder(*decoder, source, "decoder", byte_level));
  return surroundings;
}

}  // namespace dsa
