// Decides when a reply ends and which of its text may already be shown.  One per request; engine
// thread only.
//
// Text that may be the beginning of a stop string is held back until it is decided, so no byte of a
// stop string ever leaves.  Where stop strings act on the content of a reply alone, its text leaves
// as it comes, and with it how much of the content may be shown: what is content is only known once
// it is clear that no tool call begins.  Matching is Knuth, Morris & Pratt 1977, one automaton a
// string: constant work a byte, however long the reply.
#pragma once

#include "common/cache_line.h"
#include "common/ids.h"
#include "scheduler/request.h"
#include "scheduler/validate.h"
#include "server/engine/text_decoder.h"

#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// Finds the first of several strings in a text that comes in pieces.
class StopMatcher final {
 public:
  explicit StopMatcher(const std::vector<std::string>& strings);  // none empty

  // Reads one byte.  The length of the longest string that ends with it, or 0.
  std::int64_t Push(char byte);
  // How many bytes at the beginning of `text` neither continue a string nor begin one.
  std::size_t CountPlain(std::string_view text) const {
    if (held_ > 0) {
      return 0;
    }
    std::size_t plain = 0;
    while (plain < text.size() && !first_bytes_[static_cast<unsigned char>(text[plain])]) {
      ++plain;
    }
    return plain;
  }
  // How many of the last bytes may be the beginning of a string.
  std::int64_t held() const { return held_; }
  void Reset();

 private:
  struct Automaton {
    std::string text;
    std::vector<std::int16_t> fallback;  // [i]: longest border of the first i bytes
    std::int16_t matched = 0;
  };

  std::int64_t held_ = 0;
  std::bitset<256> first_bytes_;  // that begin a string
  std::vector<Automaton> automata_;
};

class alignas(kCacheLineBytes) StopChecker final {
 public:
  struct Config {
    std::span<const TokenId> end_ids;  // the model's; outlive the checker
    std::int64_t decoder_bytes_max;    // that one TextDecoder call appends
  };
  struct Text {
    std::unique_ptr<TextDecoder> decoder{};    // null: text stays empty, stop strings never match
    std::unique_ptr<ContentReader> content{};  // null: they act on all text
  };
  // Allocates all that Show uses, but for what `content` does with tool calls.
  StopChecker(const StopConditions& stop, const Config& config, Text text);

  // Judges the next generated token by its id and the length of the reply, `generated` counting it.
  // The reason where it is the last.
  std::optional<FinishReason> Judge(TokenId id, std::int64_t generated);
  // The text of the token judged last; once, before the next is judged.  The finish reason where
  // the reply ends with it: what Judge said, or a stop string, which only the text shows.
  std::optional<FinishReason> Show();

  // Says that `id` is judged and shown soon.  In this order, each when the one before has come.
  void Prefetch() const { PrefetchLines<3>(this); }
  void PrefetchDecoder() const {
    __builtin_prefetch(decoder_.get());
    __builtin_prefetch(text_.data());
  }
  void PrefetchPlace(TokenId id) const {
    if (decoder_ != nullptr) {
      decoder_->PrefetchPlace(id);
    }
  }
  void PrefetchText(TokenId id) const {
    if (decoder_ != nullptr) {
      decoder_->Prefetch(id);
    }
  }

  // Ends the text of a reply that is cut off from outside: shows what was held back.
  void Flush();

  // What the last Show or Flush made certain; valid until the next.
  std::string_view text() const { return std::string_view(text_).substr(0, shown_); }

  // As TokenDelta::content_bytes_max, of the last Show or Flush; -1 where there is none.
  std::int64_t content_bytes_max() const { return content_ == nullptr ? -1 : content_bytes_max_; }

  // The most bytes that text() can have: held back from before, one token's text, and the
  // decoder's rest.
  static std::int64_t TextBytesMax(std::int64_t decoder_bytes_max) {
    return kStopStringBytesMax + 2 * decoder_bytes_max;
  }

 private:
  void DropShown();
  bool Match(std::int64_t generated);
  std::optional<FinishReason> ShowContent();
  bool MatchContent();

  // What every token reads comes first, in as few cache lines as it fits.
  std::string text_;         // shown by the last call, then held back
  std::size_t shown_ = 0;    // bytes of text_ that the last call showed
  std::size_t matched_ = 0;  // bytes of text_ that the matcher has read
  std::unique_ptr<TextDecoder> decoder_;
  std::unique_ptr<ContentReader> content_;

  // Of the token judged last.
  std::int64_t generated_ = 0;
  TokenId id_{};
  bool is_end_id_ = false;
  std::optional<FinishReason> judged_;

  const bool ignore_end_;
  const std::int64_t max_tokens_;
  const std::span<const TokenId> end_ids_;
  const std::vector<TokenId> stop_ids_;

  StopMatcher matcher_;

  const std::int64_t min_tokens_;
  std::int64_t content_bytes_max_ = -1;
  std::string pending_;             // content that the matcher has not read
  std::int64_t content_bytes_ = 0;  // that it has read
};

}  // namespace dsa
