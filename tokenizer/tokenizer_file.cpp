#include "tokenizer/tokenizer_file.h"

#include "common/file.h"
#include "common/json.h"
#include "common/log.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/tokenizer_surroundings.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kFileBytesMax = std::int64_t{256} << 20;
constexpr std::int64_t kTokensMax = std::int64_t{1} << 22;  // ids are below

using TokenIds = std::unordered_map<std::string_view, std::int32_t>;

// A flag that must be absent or `expected`.
Status ReadFlag(JsonObject& object, std::string_view key, bool expected) {
  return ReadNeutral(object, key, {Json(expected)});
}

// A text, whatever it says, or null.
Status ReadText(JsonObject& object, std::string_view key) {
  if (object.Has(key)) {
    DSA_RETURN_IF_ERROR(object.ReadString(key));
    return {};
  }
  return ReadNeutral(object, key, {});
}

Status ReadByteLevel(JsonObject& stage) {
  DSA_RETURN_IF_ERROR(ReadFlag(stage, "add_prefix_space", false));
  DSA_RETURN_IF_ERROR(ReadNeutral(stage, "trim_offsets", {true, false}));  // no ids depend on it
  // Absent means true in the reference library.
  DSA_ASSIGN_OR_RETURN(const bool use_regex, stage.ReadBool("use_regex"));
  if (use_regex) {
    return stage.MakeError("use_regex", "true is not supported");
  }
  return stage.CheckAllRead();
}

Result<std::string> ReadSplit(JsonObject& stage) {
  DSA_ASSIGN_OR_RETURN(JsonObject pattern, stage.ReadObject("pattern"));
  DSA_ASSIGN_OR_RETURN(std::string regex, pattern.ReadString("Regex"));
  DSA_RETURN_IF_ERROR(pattern.CheckAllRead());
  DSA_RETURN_IF_ERROR(stage.ReadChoice("behavior", {"Isolated"}));
  DSA_RETURN_IF_ERROR(ReadFlag(stage, "invert", false));
  DSA_RETURN_IF_ERROR(stage.CheckAllRead());
  return regex;
}

// Split stages, then ByteLevel: `pre_tokenizer` is a Sequence of them or ByteLevel alone.
Status ReadPreTokenizer(JsonObject& document, const std::string& path, TokenizerFile& file) {
  DSA_ASSIGN_OR_RETURN(JsonObject outer, document.ReadObject("pre_tokenizer"));
  DSA_ASSIGN_OR_RETURN(const std::string type, outer.ReadChoice("type", {"Sequence", "ByteLevel"}));
  if (type == "ByteLevel") {
    return ReadByteLevel(outer);
  }
  DSA_ASSIGN_OR_RETURN(const Json* stages, outer.ReadArray("pretokenizers"));
  DSA_RETURN_IF_ERROR(outer.CheckAllRead());
  for (std::size_t i = 0; i < stages->size(); ++i) {
    const std::string stage_path = fmt::format("pre_tokenizer.pretokenizers[{}]", i);
    DSA_ASSIGN_OR_RETURN(JsonObject stage, JsonObject::From((*stages)[i], path, stage_path));
    DSA_ASSIGN_OR_RETURN(const std::string stage_type,
                         stage.ReadChoice("type", {"Split", "ByteLevel"}));
    const bool last = i + 1 == stages->size();
    if (last != (stage_type == "ByteLevel")) {
      return stage.MakeError("type", "the last stage, and no other, must be ByteLevel");
    }
    if (last) {
      return ReadByteLevel(stage);
    }
    DSA_ASSIGN_OR_RETURN(std::string pattern, ReadSplit(stage));
    file.split_patterns.push_back(std::move(pattern));
  }
  return document.MakeError("pre_tokenizer.pretokenizers", "no ByteLevel stage");
}

// Fills `tokens`, with "" for ids that no entry has.
Result<TokenIds> ReadVocabulary(JsonObject& model, TokenizerFile& file) {
  DSA_ASSIGN_OR_RETURN(const Json* entries, model.ReadAny("vocab"));
  if (!entries->is_object() || entries->empty() ||
      static_cast<std::int64_t>(entries->size()) > kTokensMax) {
    return model.MakeError("vocab", fmt::format("not an object of 1 to {} entries", kTokensMax));
  }
  file.tokens.resize(entries->size());
  TokenIds ids;
  ids.reserve(entries->size());
  for (const auto& [token, value] : entries->get_ref<const Json::object_t&>()) {
    const auto fail = [&, &token = token](std::string_view what) {
      return model.MakeError(fmt::format("vocab.{}", Brief(Json(token))), what);
    };
    if (!value.is_number_integer() || value < 0 || value >= kTokensMax) {
      return fail(fmt::format("{} is not an id in [0, {})", Brief(value), kTokensMax));
    }
    const auto id = value.get<std::size_t>();
    file.tokens.resize(std::max(file.tokens.size(), id + 1));
    if (!file.tokens[id].empty()) {
      return fail(fmt::format("id {} belongs to {} too", id, Brief(Json(file.tokens[id]))));
    }
    if (token.empty()) {
      return fail("an empty token is not supported");
    }
    file.tokens[id] = token;
    ids.emplace(token, static_cast<std::int32_t>(id));
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(ByteCharacter(static_cast<std::uint8_t>(byte)));
    if (found == ids.end()) {
      return model.MakeError("vocab", fmt::format("no token for byte 0x{:02x}", byte));
    }
    file.byte_ids[static_cast<std::size_t>(byte)] = found->second;
  }
  return ids;
}

// A merge is "a b" or ["a", "b"]; nullopt for anything else.
std::optional<std::pair<std::string_view, std::string_view>> MergeParts(const Json& merge) {
  if (merge.is_array()) {
    if (merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
      return std::nullopt;
    }
    return std::pair<std::string_view, std::string_view>(merge[0].get_ref<const std::string&>(),
                                                         merge[1].get_ref<const std::string&>());
  }
  if (!merge.is_string()) {
    return std::nullopt;
  }
  const std::string_view text = merge.get_ref<const std::string&>();
  const std::size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
    return std::nullopt;
  }
  return std::pair(text.substr(0, space), text.substr(space + 1));
}

Status ReadMerges(JsonObject& model, const TokenIds& ids, TokenizerFile& file) {
  DSA_ASSIGN_OR_RETURN(const Json* merges, model.ReadArray("merges"));
  if (static_cast<std::int64_t>(merges->size()) >= kTokensMax) {
    return model.MakeError("merges", fmt::format("{} merges are too many", merges->size()));
  }
  std::unordered_set<std::uint64_t> pairs;
  pairs.reserve(merges->size());
  file.merges.reserve(merges->size());
  for (std::size_t rank = 0; rank < merges->size(); ++rank) {
    const Json& merge = (*merges)[rank];
    const auto fail = [&](std::string_view what) {
      return model.MakeError(fmt::format("merges[{}]", rank),
                             fmt::format("{} {}", Brief(merge), what));
    };
    const auto parts = MergeParts(merge);
    if (!parts.has_value()) {
      return fail("is not two tokens");
    }
    const auto left = ids.find(parts->first);
    const auto right = ids.find(parts->second);
    if (left == ids.end() || right == ids.end()) {
      return fail("has a part that is not in vocab");
    }
    const std::string whole = fmt::format("{}{}", parts->first, parts->second);
    const auto merged = ids.find(whole);
    if (merged == ids.end()) {
      return fail("makes a token that is not in vocab");
    }
    if (!pairs
             .insert(static_cast<std::uint64_t>(left->second) << 32 |
                     static_cast<std::uint32_t>(right->second))
             .second) {
      return fail("stands there twice");
    }
    file.merges.push_back({.left = left->second, .right = right->second, .merged = merged->second});
  }
  return {};
}

Result<AddedTokenEntry> ReadAddedToken(JsonObject& entry) {
  AddedTokenEntry added{};
  DSA_ASSIGN_OR_RETURN(added.content, entry.ReadString("content"));
  DSA_ASSIGN_OR_RETURN(const std::int64_t id, entry.ReadInt("id", 0, kTokensMax - 1));
  added.id = static_cast<std::int32_t>(id);
  DSA_RETURN_IF_ERROR(ReadFlag(entry, "single_word", false));
  for (const auto& [key, flag] : {std::pair("lstrip", &AddedTokenEntry::strips_left),
                                  std::pair("rstrip", &AddedTokenEntry::strips_right),
                                  std::pair("special", &AddedTokenEntry::special)}) {
    if (entry.Has(key)) {
      DSA_ASSIGN_OR_RETURN(added.*flag, entry.ReadBool(key));
    } else {
      DSA_RETURN_IF_ERROR(ReadNeutral(entry, key, {}));
    }
  }
  DSA_ASSIGN_OR_RETURN(added.normalized, entry.ReadBool("normalized"));
  DSA_RETURN_IF_ERROR(entry.CheckAllRead());
  return added;
}

// Ids are those that the file says, with gaps or without.
Status ReadAddedTokens(JsonObject& document, const std::string& path, const TokenIds& ids,
                       TokenizerFile& file) {
  if (!document.Has("added_tokens")) {
    return ReadNeutral(document, "added_tokens", {});
  }
  DSA_ASSIGN_OR_RETURN(const Json* entries, document.ReadArray("added_tokens"));
  std::set<std::string> contents;
  std::unordered_map<std::int32_t, std::string> owners;  // of ids beside the vocabulary
  for (std::size_t i = 0; i < entries->size(); ++i) {
    const std::string entry_path = fmt::format("added_tokens[{}]", i);
    DSA_ASSIGN_OR_RETURN(JsonObject entry, JsonObject::From((*entries)[i], path, entry_path));
    DSA_ASSIGN_OR_RETURN(AddedTokenEntry added, ReadAddedToken(entry));
    const std::string shown = Brief(Json(added.content));
    if (added.content.empty() || !contents.insert(added.content).second) {
      return entry.MakeError("content", fmt::format("{} is empty or stands there twice", shown));
    }
    const auto known = ids.find(added.content);
    if (known != ids.end() && known->second != added.id) {
      return entry.MakeError(
          "id", fmt::format("{} is not {}, the id of {}", added.id, known->second, shown));
    }
    const auto id = static_cast<std::size_t>(added.id);
    std::string owner = id < file.tokens.size() ? file.tokens[id] : "";
    if (owner.empty()) {
      owner = owners.emplace(added.id, added.content).first->second;
    }
    if (owner != added.content) {
      return entry.MakeError("id",
                             fmt::format("{} belongs to {} too", added.id, Brief(Json(owner))));
    }
    file.added_tokens.push_back(std::move(added));
  }
  return {};
}

// The token that the post-processor's template names.
Status ReadPrefix(const JsonObject& document, const TokenizerSurroundings& surroundings,
                  TokenizerFile& file) {
  if (!surroundings.prefix.has_value()) {
    return {};
  }
  file.has_template = true;
  if (surroundings.prefix->empty()) {
    return {};
  }
  for (const AddedTokenEntry& added : file.added_tokens) {
    if (added.content == *surroundings.prefix) {
      file.prefix_id = added.id;
      return {};
    }
  }
  return document.MakeError("post_processor", fmt::format("{} is not one of added_tokens",
                                                          Brief(Json(*surroundings.prefix))));
}

// Tokens that no text can become, for the log: the model may still write them.
void LogUnreachable(const std::string& path, const TokenizerFile& file) {
  std::vector<bool> reachable(file.tokens.size(), false);
  for (const std::int32_t id : file.byte_ids) {
    reachable[static_cast<std::size_t>(id)] = true;
  }
  for (const BpeMerge& merge : file.merges) {
    reachable[static_cast<std::size_t>(merge.merged)] = true;
  }
  for (const AddedTokenEntry& added : file.added_tokens) {
    if (static_cast<std::size_t>(added.id) < reachable.size()) {
      reachable[static_cast<std::size_t>(added.id)] = true;
    }
  }
  std::int64_t unreachable = 0;
  for (std::size_t id = 0; id < reachable.size(); ++id) {
    unreachable += reachable[id] || file.tokens[id].empty() ? 0 : 1;
  }
  if (unreachable > 0) {
    Log(LogLevel::kInfo, "tokenizer: tokens that no merge makes",
        {{"file", path}, {"tokens", unreachable}});
  }
}

// The library that writes these files takes one without a type for what its keys say.
Status ReadModelType(JsonObject& model) {
  if (model.Has("type")) {
    DSA_RETURN_IF_ERROR(model.ReadChoice("type", {"BPE"}));
    return {};
  }
  return ReadNeutral(model, "type", {});
}

Result<TokenizerFile> ReadDocument(const Json& json, const std::string& path) {
  TokenizerFile file;
  DSA_ASSIGN_OR_RETURN(JsonObject document, JsonObject::From(json, path, ""));
  DSA_ASSIGN_OR_RETURN(const TokenizerSurroundings surroundings,
                       ReadTokenizerSurroundings(document, path));
  DSA_RETURN_IF_ERROR(ReadPreTokenizer(document, path, file));
  DSA_ASSIGN_OR_RETURN(JsonObject model, document.ReadObject("model"));
  DSA_RETURN_IF_ERROR(ReadModelType(model));
  DSA_RETURN_IF_ERROR(ReadNeutral(model, "dropout", {0}));
  DSA_RETURN_IF_ERROR(ReadNeutral(model, "continuing_subword_prefix", {""}));
  DSA_RETURN_IF_ERROR(ReadNeutral(model, "end_of_word_suffix", {""}));
  // Every byte has a token (ReadVocabulary), so that nothing is ever unknown.
  DSA_RETURN_IF_ERROR(ReadText(model, "unk_token"));
  DSA_RETURN_IF_ERROR(ReadNeutral(model, "fuse_unk", {true, false}));
  DSA_RETURN_IF_ERROR(ReadNeutral(model, "byte_fallback", {true, false}));
  DSA_RETURN_IF_ERROR(ReadNeutral(model, "ignore_merges", {true, false}));
  file.ignore_merges = model.Has("ignore_merges") && model.ReadBool("ignore_merges").value()
                           ? Bpe::IgnoreMerges::kYes
                           : Bpe::IgnoreMerges::kNo;
  DSA_ASSIGN_OR_RETURN(const TokenIds ids, ReadVocabulary(model, file));
  DSA_RETURN_IF_ERROR(ReadMerges(model, ids, file));
  DSA_RETURN_IF_ERROR(model.CheckAllRead());
  DSA_RETURN_IF_ERROR(ReadAddedTokens(document, path, ids, file));
  DSA_RETURN_IF_ERROR(document.CheckAllRead());
  DSA_RETURN_IF_ERROR(ReadPrefix(document, surroundings, file));
  if (file.ignore_merges == Bpe::IgnoreMerges::kNo) {
    LogUnreachable(path, file);
  }
  return file;
}

}  // namespace

Result<TokenizerFile> ReadTokenizerFile(const std::string& path) {
  DSA_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kFileBytesMax));
  DSA_ASSIGN_OR_RETURN(const Json json, ParseJson(text, path));
  return ReadDocument(json, path);
}

}  // namespace dsa
