// What the reply parsers of the two chat formats share: the buffer of undecided text, where text
// goes, and how a call that turns out to be none becomes text.  Within tokenizer/ only.
#pragma once

#include "tokenizer/reply_decoder.h"
#include "tokenizer/reply_parser.h"

#include <cstddef>
#include <string>
#include <string_view>

namespace dsa {

inline constexpr std::string_view kReplySpaces = " \t\r\n";

class ReplyParserBase : public ReplyParser {
 public:
  explicit ReplyParserBase(bool thinking) : in_reasoning_(thinking) {}

  void Read(std::string_view text, ReplyDelta& delta) final;
  ReplyDelta Finish(ReplyEnd end) final;
  bool has_tool_calls() const final { return calls_ > 0; }
  bool in_reasoning() const final { return in_reasoning_; }
  void Reserve(std::size_t text_bytes, ReplyDelta& delta) final;

 protected:
  // Decides some of what is in buffer().  False where more text is needed.
  virtual bool Step(ReplyDelta& delta) = 0;
  // The reply is over, and Step needs more: decides the open call, if there is one; what is left in
  // the buffer is text from now on.  True where a call was put back.
  virtual bool End(ReplyEnd end, ReplyDelta& delta) = 0;

  std::string_view buffer() const { return std::string_view(buffer_).substr(taken_); }
  std::string_view Take(std::size_t bytes);  // valid until the buffer changes
  // Bytes at the start of buffer() that are text, whatever they look like.
  std::size_t plain_bytes() const { return plain_bytes_; }

  // What Take gave, kept as long as it may have to be put back.
  void Keep(std::string_view text) { kept_ += text; }
  void Forget() { kept_.clear(); }
  // What was kept is no call: it comes again, the first `plain_bytes` of it as text.
  void PutBack(std::size_t plain_bytes);

  // Takes `bytes` of the buffer as reasoning or content.
  void TakeText(std::size_t bytes, ReplyDelta& delta);
  // Whether the reasoning, or behind it the content, has any text yet.
  bool has_text() const { return has_text_; }
  // Whether buffer() has the end of the reasoning at `at`, or may have.
  enum class Likeness : std::uint8_t { kNone, kStart, kWhole };
  Likeness ThinkEndAt(std::size_t at) const;
  void TakeThinkEnd();

  void AddCall(ReplyDelta& delta, std::string name, std::string arguments);

 private:
  bool in_reasoning_;
  bool has_text_ = false;
  std::string buffer_;
  std::size_t taken_ = 0;  // of buffer_: decided already
  std::size_t plain_bytes_ = 0;
  std::string kept_;
  std::size_t calls_ = 0;
};

// The text without the white space around it.
std::string_view Trim(std::string_view text);
// Whether the text is a JSON object.
bool IsJsonObject(std::string_view text);

std::unique_ptr<ReplyParser> MakeReplyParserV32(bool thinking);
std::unique_ptr<ReplyParser> MakeReplyParserV31(bool thinking);

}  // namespace dsa
