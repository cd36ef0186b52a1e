// What a Hugging Face tokenizer.json says, checked: byte-level BPE, as its authors or a library
// wrote it.  What would change ids and is not supported is refused; what changes none is taken.
#pragma once

#include "common/status.h"
#include "tokenizer/bpe.h"

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dsa {

struct AddedTokenEntry {
  std::int32_t id;
  std::string content;
  bool normalized;    // matched after those that are not
  bool special;       // a control token, which decoding may leave out
  bool strips_left;   // takes the white space in front of it
  bool strips_right;  // takes the white space behind it
};

struct TokenizerFile {
  std::vector<std::string> tokens;  // by id, as the file writes them; "" where no entry has the id
  std::array<std::int32_t, 256> byte_ids;
  std::vector<BpeMerge> merges;               // by rank
  std::vector<AddedTokenEntry> added_tokens;  // may be entries of `tokens` too
  std::vector<std::string> split_patterns;    // in the order of the stages
  Bpe::IgnoreMerges ignore_merges;
  bool has_template = false;              // the post-processor says what stands before a text:
  std::optional<std::int32_t> prefix_id;  // this added token, or nothing
};

// INVALID_ARGUMENT naming the file, the key, its value and what is supported.
Result<TokenizerFile> ReadTokenizerFile(const std::string& path);

}  // namespace dsa
