// A small tokenizer in the form of DeepSeek's tokenizer.json: byte-level BPE with its three Split
// stages, all 256 bytes, a few merges of common English, and the added tokens of the V3.2 chat
// format.  Internal to model/.
#pragma once

#include "common/status.h"

#include <cstdint>
#include <string>

namespace dsa {

// The smallest vocabulary that has room for the bytes and the added tokens.
inline constexpr std::int64_t kTokenizerVocabularyMin = 512;

// Writes tokenizer.json and tokenizer_config.json, which has no chat_template: the V3.2 format.
// Ids are below kTokenizerVocabularyMin; the model's further rows have no token.  Writes nothing
// for a smaller vocabulary.
Status WriteRandomTokenizer(std::int64_t vocabulary, const std::string& folder);

}  // namespace dsa
