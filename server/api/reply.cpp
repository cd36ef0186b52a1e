#include "server/api/reply.h"

#include "tokenizer/reply_decoder.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

namespace dsa {
namespace {

ReplyFinish ToReplyFinish(FinishReason reason, bool has_tool_calls) {
  switch (reason) {
    case FinishReason::kStop: return has_tool_calls ? ReplyFinish::kToolCalls : ReplyFinish::kStop;
    case FinishReason::kLength: return ReplyFinish::kLength;
    case FinishReason::kCancelled: return ReplyFinish::kCancelled;
    case FinishReason::kDeadline: return ReplyFinish::kDeadline;
    case FinishReason::kAborted: return ReplyFinish::kAborted;
    case FinishReason::kError: return ReplyFinish::kError;
  }
  return ReplyFinish::kError;
}

template <typename T>
void Append(std::vector<T>& target, std::vector<T>&& source) {
  target.insert(target.end(), std::make_move_iterator(source.begin()),
                std::make_move_iterator(source.end()));
}

// Only an end id or a stop id is the model's own end of its text.
ReplyEnd EndOf(FinishReason reason) {
  return reason == FinishReason::kStop ? ReplyEnd::kByModel : ReplyEnd::kCutOff;
}

class ReplyTextDecoder final : public TextDecoder {
 public:
  ReplyTextDecoder(const Tokenizer& tokenizer, ChatFormat format) : decoder_(tokenizer, format) {}
  void Push(TokenId id, std::string& out) override { decoder_.Push(id, out); }
  void Prefetch(TokenId id) const override { decoder_.Prefetch(id); }
  void Finish(std::string& out) override { decoder_.Finish(out); }

 private:
  ReplyDecoder decoder_;
};

class ReplyContentReader final : public ContentReader {
 public:
  explicit ReplyContentReader(std::unique_ptr<ReplyParser> parser) : parser_(std::move(parser)) {}
  void Reserve(std::int64_t text_bytes) override {
    parser_->Reserve(static_cast<std::size_t>(text_bytes), delta_);
  }
  void Push(std::string_view text, std::string& content) override {
    delta_.reasoning.clear();
    delta_.content.clear();
    delta_.tool_calls.clear();
    parser_->Read(text, delta_);
    content += delta_.content;
  }
  void Finish(FinishReason reason, std::string& content) override {
    content += parser_->Finish(EndOf(reason)).content;
  }

 private:
  std::unique_ptr<ReplyParser> parser_;
  ReplyDelta delta_;  // its memory is used again
};

}  // namespace

std::string_view ToString(ReplyFinish finish) {
  switch (finish) {
    case ReplyFinish::kStop: return "stop";
    case ReplyFinish::kLength: return "length";
    case ReplyFinish::kToolCalls: return "tool_calls";
    case ReplyFinish::kCancelled: return "cancelled";
    case ReplyFinish::kDeadline: return "deadline";
    case ReplyFinish::kAborted: return "aborted";
    case ReplyFinish::kError: return "error";
  }
  return "error";
}

std::int64_t ReplyPart::bytes() const {
  std::size_t bytes = reasoning.size() + content.size();
  for (const ToolCall& call : tool_calls) {
    bytes += call.id.size() + call.name.size() + call.arguments.size();
  }
  for (const std::vector<GeneratedToken>* list : {&prompt, &tokens}) {
    for (const GeneratedToken& token : *list) {
      bytes += sizeof(GeneratedToken) + token.top_logprobs.size() * sizeof(TokenLogprob);
    }
  }
  return static_cast<std::int64_t>(bytes);
}

void Merge(ReplyPart& part, ReplyPart&& next) {
  part.index = next.index;
  part.reasoning += next.reasoning;
  part.content += next.content;
  Append(part.tool_calls, std::move(next.tool_calls));
  Append(part.prompt, std::move(next.prompt));
  Append(part.tokens, std::move(next.tokens));
  part.finish = next.finish;
  part.error = std::move(next.error);
  part.usage = next.usage;
  part.reasoning_tokens = next.reasoning_tokens;
  part.answer_tokens = next.answer_tokens;
}

ReplyAssembler::ReplyAssembler(const ReplyFormat& format)
    : parser_(format.chat ? MakeReplyParser(*format.chat, format.thinking) : nullptr) {}

ReplyPart ReplyAssembler::Add(TokenDelta&& delta) {
  ReplyPart part;
  if (parser_ == nullptr) {
    part.content = std::move(delta.text);
  } else {
    Parse(delta, part);
    ReleaseContent(delta, part);
  }
  if (delta.finish) {
    part.finish = ToReplyFinish(*delta.finish, parser_ != nullptr && parser_->has_tool_calls());
  }
  part.prompt = std::move(delta.prompt);
  part.tokens = std::move(delta.tokens);
  part.error = std::move(delta.error);
  part.usage = delta.usage;
  part.reasoning_tokens = reasoning_tokens_;
  part.answer_tokens = delta.usage.completion_tokens;
  return part;
}

void ReplyAssembler::Parse(const TokenDelta& delta, ReplyPart& part) {
  const auto append = [&](ReplyDelta&& parsed) {
    part.reasoning += parsed.reasoning;
    held_content_ += parsed.content;
    Append(part.tool_calls, std::move(parsed.tool_calls));
  };
  std::string_view text = delta.text;
  for (const GeneratedToken& token : delta.tokens) {
    // The mark that ends the reasoning still belongs to it.
    reasoning_tokens_ += parser_->in_reasoning() ? 1 : 0;
    const auto bytes = static_cast<std::size_t>(token.text_bytes);
    append(parser_->Push(text.substr(0, bytes)));
    text.remove_prefix(std::min(bytes, text.size()));
  }
  append(parser_->Push(text));  // of no token: what was held back when it was cut off
  if (delta.finish) {
    // Behind a stop string nothing counts, least of all what could still become a call.
    const bool stopped = delta.content_bytes_max.has_value();
    append(parser_->Finish(stopped ? ReplyEnd::kCutOff : EndOf(*delta.finish)));
  }
}

void ReplyAssembler::ReleaseContent(const TokenDelta& delta, ReplyPart& part) {
  std::size_t bytes = held_content_.size();
  if (delta.content_bytes_max) {
    const std::int64_t allowed = *delta.content_bytes_max - released_bytes_;
    bytes = std::min(bytes, static_cast<std::size_t>(std::max<std::int64_t>(allowed, 0)));
  }
  part.content = held_content_.substr(0, bytes);
  held_content_.erase(0, bytes);
  released_bytes_ += static_cast<std::int64_t>(bytes);
}

std::unique_ptr<TextDecoder> MakeReplyTextDecoder(const ReplyFormat& format,
                                                  const Tokenizer* tokenizer) {
  return format.chat && tokenizer != nullptr
             ? std::make_unique<ReplyTextDecoder>(*tokenizer, *format.chat)
             : nullptr;
}

std::unique_ptr<ContentReader> MakeReplyContentReader(const ReplyFormat& format) {
  return format.chat
             ? std::make_unique<ReplyContentReader>(MakeReplyParser(*format.chat, format.thinking))
             : nullptr;
}

}  // namespace dsa
