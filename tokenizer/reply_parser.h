// Splits a reply, as it streams, into reasoning, content and tool calls.  One per request; single
// thread.  The same whatever pieces the reply comes in.
//
// A tool call is one where it can be read as one, whole, wherever it stands, within the reasoning
// too.  What cannot be read as a call is text, whole, its markup included: no text is ever left
// out, changed or shown in part.  "<think>" and "</think>" mean something once, where the reasoning
// ends, and are text elsewhere.
//
// Text comes as a ReplyDecoder writes it: tokens that control are left out there, by their ids.
#pragma once

#include "tokenizer/chat_template.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// What became certain since the last call.  A tool call is complete when it appears.
struct ReplyDelta {
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;  // ids are "call_0", "call_1", ... within the reply

  bool empty() const { return reasoning.empty() && content.empty() && tool_calls.empty(); }
};

// How the text came to its end: a call that lacks nothing but closing marks is one where the model
// ended the reply itself, and none where it was cut off.
enum class ReplyEnd : std::uint8_t { kByModel, kCutOff };

class ReplyParser {
 public:
  ReplyParser() = default;
  ReplyParser(const ReplyParser&) = delete;
  ReplyParser& operator=(const ReplyParser&) = delete;
  virtual ~ReplyParser() = default;

  // Appends what became certain to `delta`.
  virtual void Read(std::string_view text, ReplyDelta& delta) = 0;
  // The same, alone.
  ReplyDelta Push(std::string_view text) {
    ReplyDelta delta;
    Read(text, delta);
    return delta;
  }
  // What was held back.
  virtual ReplyDelta Finish(ReplyEnd end) = 0;
  // Whether a tool call was parsed: the finish reason is then "tool_calls".
  virtual bool has_tool_calls() const = 0;
  // True while the text belongs to the reasoning: for counting reasoning tokens.
  virtual bool in_reasoning() const = 0;
  // Allocates, in an empty `delta` too, all that Read of at most `text_bytes` uses while no call
  // stands there.
  virtual void Reserve(std::size_t text_bytes, ReplyDelta& delta) = 0;
};

// `thinking` says how the prompt opened the turn.
std::unique_ptr<ReplyParser> MakeReplyParser(ChatFormat format, bool thinking);

}  // namespace dsa
