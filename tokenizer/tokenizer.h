// Text to token ids and back: byte-level BPE from a Hugging Face tokenizer.json.  Immutable after
// loading and shared by all threads; per-request state lives in IncrementalDecoder.
#pragma once

#include "common/ids.h"
#include "common/status.h"
#include "tokenizer/utf8.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// Bytes [begin, end) of a text.
struct TextRange {
  std::size_t begin;
  std::size_t end;
};

class Tokenizer final {
 public:
  // INVALID_ARGUMENT naming the file, the key, its value and what is supported.
  static Result<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // The ids of `text`; added tokens in it are plain text.  Never adds BOS.  Time grows with the
  // size of the text, whatever it is.  Invalid UTF-8 is encoded as U+FFFD; callers refuse it.
  std::vector<TokenId> Encode(std::string_view text) const;

  // As Encode, but added tokens match where they lie wholly inside one of `ranges` (sorted, not
  // overlapping).  Equals encoding the whole string with added tokens on wherever no added token
  // stands outside the ranges.
  std::vector<TokenId> EncodeWithAdded(std::string_view text,
                                       std::span<const TextRange> ranges) const;

  // Added tokens match everywhere.
  std::vector<TokenId> EncodeWithAdded(std::string_view text) const;

  // As EncodeWithAdded; nullopt where there are more than `tokens_max` ids, which the text's size
  // says or is found without encoding what lies far behind.
  std::optional<std::vector<TokenId>> EncodeAtMost(std::string_view text,
                                                   std::span<const TextRange> ranges,
                                                   std::size_t tokens_max) const;

  // Of all tokens: a text of more than n times as many bytes has more than n tokens.  Where tokens
  // take white space with them there is no such number: the largest that there is.
  std::size_t longest_token_bytes() const;

  // The bytes of one token; empty for an id without a token.  Not always valid UTF-8.
  std::string_view Bytes(TokenId id) const;

  // Asks for the memory of Bytes(id) ahead of its use; before that, for where it lies.
  void Prefetch(TokenId id) const;
  void PrefetchPlace(TokenId id) const;

  // The id of an added token by its content, such as "</think>".
  std::optional<TokenId> AddedToken(std::string_view content) const;
  bool IsAdded(TokenId id) const;
  // Whether the file marks an added token as special: it controls, and is no text.
  bool IsSpecial(TokenId id) const;

  // Whether the file's post-processor says what stands in front of a text, and the token that does
  // by it.  Encode adds none.
  bool has_template() const;
  std::optional<TokenId> template_prefix() const;

  // One past the last id that has a token: ids from here on are never sampled.
  std::int32_t size() const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Turns ids into text, holding back bytes until they form whole characters.  Invalid bytes become
// U+FFFD, as many as Python's bytes.decode("utf-8", "replace") writes.
class IncrementalDecoder final {
 public:
  explicit IncrementalDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  void Prefetch(TokenId id) const { tokenizer_->Prefetch(id); }
  void PrefetchPlace(TokenId id) const { tokenizer_->PrefetchPlace(id); }
  // Appends the text that `id` completes to `out`: valid UTF-8.
  void Push(TokenId id, std::string& out);
  // Appends what is still held back, replaced by U+FFFD.
  void Finish(std::string& out);

 private:
  const Tokenizer* tokenizer_;
  Utf8Stream stream_;
};

}  // namespace dsa
