// Ids of a reply to the text that a ReplyParser reads.  Tokens that control the conversation are
// known by their ids, never by their text, which a model may as well write in other tokens:
//
//   special tokens, and those of roles   left out
//   tool marks of V3.1                   their text between two bytes that no UTF-8 has
//   all others                           their text
//
// One per request; single thread.
#pragma once

#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

#include <string>
#include <string_view>

namespace dsa {

inline constexpr char kMarkBegin = '\xff';
inline constexpr char kMarkEnd = '\xfe';
inline constexpr std::string_view kMarkEnclosers = "\xff\xfe";

inline constexpr std::string_view kCallsBegin = "<｜tool▁calls▁begin｜>";
inline constexpr std::string_view kCallsEnd = "<｜tool▁calls▁end｜>";
inline constexpr std::string_view kCallBegin = "<｜tool▁call▁begin｜>";
inline constexpr std::string_view kCallEnd = "<｜tool▁call▁end｜>";
inline constexpr std::string_view kToolSeparator = "<｜tool▁sep｜>";

class ReplyDecoder final {
 public:
  ReplyDecoder(const Tokenizer& tokenizer, ChatFormat format)
      : tokenizer_(&tokenizer), decoder_(tokenizer), format_(format) {}

  // Appends the text that `id` completes to `out`.
  void Push(TokenId id, std::string& out);
  // Appends what is still held back, replaced by U+FFFD.
  void Finish(std::string& out) { decoder_.Finish(out); }
  void Prefetch(TokenId id) const { decoder_.Prefetch(id); }

 private:
  const Tokenizer* tokenizer_;
  IncrementalDecoder decoder_;
  ChatFormat format_;
};

}  // namespace dsa
