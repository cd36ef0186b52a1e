// An answer on its way up: the engine's deltas split into reasoning, content and tool calls, and
// merged while the client does not read.  Plain data, without any protocol.
#pragma once

#include "server/engine/text_decoder.h"
#include "server/engine/token_sink.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/reply_parser.h"
#include "tokenizer/tokenizer.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// How the text of an answer is to be read.
struct ReplyFormat {
  std::optional<ChatFormat> chat;  // nullopt: a completion, all of it content
  bool thinking = false;           // how the prompt opened the turn
};

enum class ReplyFinish : std::uint8_t {
  kStop,
  kLength,
  kToolCalls,
  kCancelled,
  kDeadline,
  kAborted,
  kError,
};

// What became certain since the part before.
struct ReplyPart {
  std::int64_t index = 0;  // of the answer that it belongs to
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;
  std::vector<GeneratedToken> prompt;  // TokenDelta::prompt; of a prompt's first answer, before
                                       // all of its others
  std::vector<GeneratedToken> tokens;
  std::optional<ReplyFinish> finish;  // on the last part
  std::optional<Error> error;         // with kDeadline and kError
  Usage usage;                        // so far; once it is the call's, of all answers
  std::int64_t reasoning_tokens = 0;  // likewise
  std::int64_t answer_tokens = 0;     // generated so far, of this answer
  // Of a reply that comes whole, where it has several answers: those behind the first.
  std::vector<ReplyPart> others;

  // Nothing that a client would see.
  bool empty() const {
    return reasoning.empty() && content.empty() && tool_calls.empty() && tokens.empty();
  }
  // About what the part costs in memory.
  std::int64_t bytes() const;
};

enum class ReportLogprobs : std::uint8_t { kNo, kYes };

enum class ReportCost : std::uint8_t { kNo, kYes };

// What answers to one prompt begin with.
struct PromptHead {
  std::string echo{};  // what stands before the text of a completion
  // The prompt's first token, where log-probabilities of the others are reported: it has none.
  std::optional<TokenId> begin{};
};

// What every message of an answer repeats.
struct ReplyHead {
  std::string request_id;
  std::int64_t answers = 1;  // to each prompt: those to the first come first
  std::uint64_t seed = 0;    // of the first answer, and + i of the one with index i of one prompt
  ReportLogprobs logprobs = ReportLogprobs::kNo;
  ReportCost cost = ReportCost::kNo;
  std::vector<PromptHead> prompts{};

  std::size_t PromptOf(std::int64_t answer) const {
    return static_cast<std::size_t>(answer / answers);
  }
  bool IsFirstOfPrompt(std::int64_t answer) const { return answer % answers == 0; }
};

// In words, for logs: "stop", "tool_calls".
std::string_view ToString(ReplyFinish finish);

// Appends `next`, the part after `part`.
void Merge(ReplyPart& part, ReplyPart&& next);

// One per request; single thread.  Reads token by token, however many a delta brings, so that all
// it says depends on the tokens alone.
class ReplyAssembler final {
 public:
  explicit ReplyAssembler(const ReplyFormat& format);

  ReplyPart Add(TokenDelta&& delta);

 private:
  void Parse(const TokenDelta& delta, ReplyPart& part);
  // Moves the content that may be shown into `part`.
  void ReleaseContent(const TokenDelta& delta, ReplyPart& part);

  std::unique_ptr<ReplyParser> parser_;  // null: a completion
  std::int64_t reasoning_tokens_ = 0;
  std::string held_content_;         // may belong to a stop string
  std::int64_t released_bytes_ = 0;  // of content
};

// What TokenSink asks for; null for a completion.
std::unique_ptr<TextDecoder> MakeReplyTextDecoder(const ReplyFormat& format,
                                                  const Tokenizer* tokenizer);
std::unique_ptr<ContentReader> MakeReplyContentReader(const ReplyFormat& format);

}  // namespace dsa
