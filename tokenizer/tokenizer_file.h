// What a Hugging Face tokenizer.json says, checked.  Only what byte-level BPE needs is supported;
// anything else in the file is refused, because ignoring it would change ids.
#pragma once

#include "common/status.h"
#include "tokenizer/bpe.h"

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace dsa {

struct AddedTokenEntry {
  std::int32_t id;
  std::string content;
  bool normalized;  // matched after those that are not
};

struct TokenizerFile {
  std::vector<std::string> tokens;  // by id, as the file writes them
  std::array<std::int32_t, 256> byte_ids;
  std::vector<BpeMerge> merges;               // by rank
  std::vector<AddedTokenEntry> added_tokens;  // may be entries of `tokens` too
  std::vector<std::string> split_patterns;    // in the order of the stages
  Bpe::IgnoreMerges ignore_merges;
};

// INVALID_ARGUMENT naming the file, the key, its value and what is supported.
Result<TokenizerFile> ReadTokenizerFile(const std::string& path);

}  // namespace dsa
