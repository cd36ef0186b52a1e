#include "server/api/reply.h"

#include <iterator>
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

void AppendParsed(ReplyPart& part, ReplyDelta&& parsed) {
  part.reasoning += parsed.reasoning;
  part.content += parsed.content;
  Append(part.tool_calls, std::move(parsed.tool_calls));
}

}  // namespace

std::int64_t ReplyPart::bytes() const {
  std::size_t bytes = reasoning.size() + content.size();
  for (const ToolCall& call : tool_calls) {
    bytes += call.id.size() + call.name.size() + call.arguments.size();
  }
  for (const GeneratedToken& token : tokens) {
    bytes += sizeof(GeneratedToken) + token.top_logprobs.size() * sizeof(TokenLogprob);
  }
  return static_cast<std::int64_t>(bytes);
}

void Merge(ReplyPart& part, ReplyPart&& next) {
  part.reasoning += next.reasoning;
  part.content += next.content;
  Append(part.tool_calls, std::move(next.tool_calls));
  Append(part.tokens, std::move(next.tokens));
  part.finish = next.finish;
  part.error = std::move(next.error);
  part.usage = next.usage;
  part.reasoning_tokens = next.reasoning_tokens;
}

ReplyAssembler::ReplyAssembler(const ReplyFormat& format)
    : parser_(format.chat ? MakeReplyParser(*format.chat, format.thinking) : nullptr) {}

ReplyPart ReplyAssembler::Add(TokenDelta&& delta) {
  ReplyPart part;
  if (parser_ == nullptr) {
    part.content = std::move(delta.text);
  } else {
    // The mark that ends the reasoning still belongs to it.
    if (parser_->in_reasoning()) {
      reasoning_tokens_ += static_cast<std::int64_t>(delta.tokens.size());
    }
    AppendParsed(part, parser_->Push(delta.text));
    if (delta.finish) {
      AppendParsed(part, parser_->Finish());
    }
  }
  if (delta.finish) {
    part.finish = ToReplyFinish(*delta.finish, parser_ != nullptr && parser_->has_tool_calls());
  }
  part.tokens = std::move(delta.tokens);
  part.error = std::move(delta.error);
  part.usage = delta.usage;
  part.reasoning_tokens = reasoning_tokens_;
  return part;
}

}  // namespace dsa
