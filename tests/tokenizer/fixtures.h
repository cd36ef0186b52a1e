// The fixtures of the tokenizer's tests.
#pragma once

#include "common/file.h"
#include "common/json.h"
#include "tests/paths.h"
#include "tokenizer/tokenizer.h"

#include <cstdint>
#include <string>
#include <vector>

namespace dsa::testing {

inline std::string FixturePath(const std::string& name) {
  return SourcePath(std::string("tests/fixtures/") + name);
}

inline const std::string& DeepSeekTokenizerPath() {
  static const std::string path = FixturePath("deepseek_v3_tokenizer/tokenizer.json");
  return path;
}

// DeepSeek-V3's tokenizer, loaded once.
inline const Tokenizer& DeepSeekTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      Tokenizer::Load(DeepSeekTokenizerPath()).value();
  return *tokenizer;
}

inline Json ReadJsonFixture(const std::string& name) {
  return ParseJson(ReadFile(FixturePath(name), std::int64_t{64} << 20).value(), name).value();
}

inline std::vector<std::int32_t> Values(const std::vector<TokenId>& ids) {
  std::vector<std::int32_t> values;
  for (const TokenId id : ids) {
    values.push_back(Value(id));
  }
  return values;
}

inline std::string Decode(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  IncrementalDecoder decoder(tokenizer);
  std::string text;
  for (const TokenId id : ids) {
    decoder.Push(id, text);
  }
  decoder.Finish(text);
  return text;
}

}  // namespace dsa::testing
