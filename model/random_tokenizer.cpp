#include "model/random_tokenizer.h"

#include "common/check.h"
#include "common/json.h"
#include "model/file_writer.h"

#include <string_view>
#include <vector>

#include <fmt/core.h>

namespace dsa {
namespace {

// An added token and its flags in DeepSeek's file.
struct AddedToken {
  std::string_view content;
  bool special;
  bool normalized;
};
constexpr AddedToken kFirstTokens[] = {{"<｜begin▁of▁sentence｜>", true, false},
                                       {"<｜end▁of▁sentence｜>", true, false},
                                       {"<｜▁pad▁｜>", true, false}};
constexpr AddedToken kLastTokens[] = {{"｜DSML｜", false, true},
                                      {"<｜search▁begin｜>", false, true},
                                      {"<｜search▁end｜>", false, true},
                                      {"<think>", false, true},
                                      {"</think>", false, true},
                                      {"<｜fim▁hole｜>", false, true},
                                      {"<｜fim▁begin｜>", false, true},
                                      {"<｜fim▁end｜>", false, true},
                                      {"<｜User｜>", false, true},
                                      {"<｜Assistant｜>", false, true},
                                      {"<|EOT|>", true, true},
                                      {"<｜tool▁calls▁begin｜>", false, true},
                                      {"<｜tool▁calls▁end｜>", false, true},
                                      {"<｜tool▁call▁begin｜>", false, true},
                                      {"<｜tool▁call▁end｜>", false, true},
                                      {"<｜tool▁outputs▁begin｜>", false, true},
                                      {"<｜tool▁outputs▁end｜>", false, true},
                                      {"<｜tool▁output▁begin｜>", false, true},
                                      {"<｜tool▁output▁end｜>", false, true},
                                      {"<｜tool▁sep｜>", false, true}};

// Pieces whose prefixes become tokens, from two characters on.
constexpr std::string_view kPieces[] = {
    " the",  " and", " of",   " to",    " in",   " is",   " that", " for",  " you",  " it",
    " with", " as",  " on",   " are",   " this", " be",   " was",  " have", " from", " or",
    " can",  " not", " what", " how",   " will", " your", " an",   " by",   "ing",   "er",
    "ed",    "ion",  "es",    "ly",     "al",    "en",    "re",    "st",    "ou",    "ver",
    "  ",    "The",  "Hello", " world", "ment",  "ness",  "\n\n",  "th",    "ch",    "sh"};

// GPT-2's byte alphabet: printable bytes stand for themselves, the others for U+0100 onwards.
bool IsPrintable(unsigned byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

std::string EncodeUtf8(unsigned code_point) {  // below U+0800
  if (code_point < 0x80) {
    return {static_cast<char>(code_point)};
  }
  return {static_cast<char>(0xC0U | (code_point >> 6)),
          static_cast<char>(0x80U | (code_point & 0x3FU))};
}

// The alphabet's character for every byte.
std::vector<std::string> ByteCharacters() {
  std::vector<std::string> characters;
  unsigned next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    characters.push_back(EncodeUtf8(IsPrintable(byte) ? byte : next++));
  }
  return characters;
}

Json Vocabulary(const std::vector<std::string>& characters) {
  Json vocabulary = Json::object();
  for (const AddedToken& token : kFirstTokens) {
    vocabulary[std::string(token.content)] = vocabulary.size();
  }
  for (const bool printable : {true, false}) {  // DeepSeek's order of the bytes
    for (unsigned byte = 0; byte < 256; ++byte) {
      if (IsPrintable(byte) == printable) {
        vocabulary[characters[byte]] = vocabulary.size();
      }
    }
  }
  return vocabulary;
}

// Extends the vocabulary by the prefixes of every piece, each from the one before.
Json Merges(const std::vector<std::string>& characters, Json& vocabulary) {
  Json merges = Json::array();
  for (const std::string_view piece : kPieces) {
    std::string prefix = characters[static_cast<unsigned char>(piece.front())];
    for (const char letter : piece.substr(1)) {
      const std::string& character = characters[static_cast<unsigned char>(letter)];
      const std::string merged = prefix + character;
      if (!vocabulary.contains(merged)) {
        merges.push_back(fmt::format("{} {}", prefix, character));
        vocabulary[merged] = vocabulary.size();
      }
      prefix = merged;
    }
  }
  return merges;
}

Json AddedTokens(std::size_t first_free) {
  Json tokens = Json::array();
  const auto add = [&tokens](std::size_t id, const AddedToken& token) {
    tokens.push_back({{"id", id},
                      {"content", token.content},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", token.normalized},
                      {"special", token.special}});
  };
  for (std::size_t id = 0; id < std::size(kFirstTokens); ++id) {
    add(id, kFirstTokens[id]);
  }
  for (const AddedToken& token : kLastTokens) {
    add(first_free++, token);
  }
  return tokens;
}

Json SplitStage(std::string_view pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

Json ByteLevelStage(bool add_prefix_space, bool trim_offsets, bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", trim_offsets},
          {"use_regex", use_regex}};
}

Json PreTokenizer() {
  constexpr std::string_view kWords =
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
      "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|"
      "\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
  return {{"type", "Sequence"},
          {"pretokenizers",
           Json::array({SplitStage("\\p{N}{1,3}"), SplitStage("[一-龥\u3040-ゟ゠-ヿ]+"),
                        SplitStage(kWords), ByteLevelStage(false, true, false)})}};
}

}  // namespace

Status WriteRandomTokenizer(std::int64_t vocabulary_size, const std::string& folder) {
  if (vocabulary_size < kTokenizerVocabularyMin) {
    return {};
  }
  const std::vector<std::string> characters = ByteCharacters();
  Json vocabulary = Vocabulary(characters);
  const Json merges = Merges(characters, vocabulary);
  const Json added = AddedTokens(vocabulary.size());
  DSA_CHECK(added.back()["id"].get<std::int64_t>() < kTokenizerVocabularyMin,
            "random tokenizer: {} tokens", added.back()["id"].get<std::int64_t>() + 1);
  const Json model = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"vocab", vocabulary},
                      {"merges", merges}};
  const Json tokenizer = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", added},
                          {"normalizer", {{"type", "Sequence"}, {"normalizers", Json::array()}}},
                          {"pre_tokenizer", PreTokenizer()},
                          {"post_processor", ByteLevelStage(true, false, true)},
                          {"decoder", ByteLevelStage(true, true, true)},
                          {"model", model}};
  DSA_RETURN_IF_ERROR(WriteFile(folder + "/tokenizer.json", {tokenizer.dump(1) + "\n"}));
  const Json config = {{"add_bos_token", false},
                       {"add_eos_token", false},
                       {"bos_token", kFirstTokens[0].content},
                       {"eos_token", kFirstTokens[1].content},
                       {"pad_token", kFirstTokens[2].content},
                       {"model_max_length", 131'072},
                       {"tokenizer_class", "LlamaTokenizerFast"}};
  return WriteFile(folder + "/tokenizer_config.json", {config.dump(1) + "\n"});
}

}  // namespace dsa
