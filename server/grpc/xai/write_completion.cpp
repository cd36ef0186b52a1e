#include "server/grpc/wire.h"
#include "server/grpc/xai/completion.h"
#include "tokenizer/utf8.h"

#include <algorithm>
#include <ctime>
#include <string>

namespace dsa {
namespace {

// Ended by max_tokens or by the context, which the protocol tells apart.
xai_api::FinishReason LengthReason(const ReplyPart& part, const ServiceContext& context) {
  const bool full = part.usage.prompt_tokens + part.answer_tokens >= context.model.context_length;
  return full ? xai_api::REASON_MAX_CONTEXT : xai_api::REASON_MAX_LEN;
}

xai_api::FinishReason ReasonFor(const ReplyPart& part, const ServiceContext& context) {
  if (!part.finish) {
    return xai_api::REASON_INVALID;
  }
  switch (*part.finish) {
    case ReplyFinish::kLength: return LengthReason(part, context);
    case ReplyFinish::kToolCalls: return xai_api::REASON_TOOL_CALLS;
    case ReplyFinish::kStop:
    case ReplyFinish::kAborted: return xai_api::REASON_STOP;
    default: return xai_api::REASON_INVALID;  // of those the status speaks
  }
}

template <typename Target>
void FillLogprob(TokenId id, float logprob, const ServiceContext& context, Target& target) {
  const std::string bytes =
      context.tokenizer == nullptr ? "" : std::string(context.tokenizer->Bytes(id));
  target.set_token(RepairUtf8(bytes));
  target.set_logprob(logprob);
  target.set_bytes(bytes);
}

// CompletionOutput or CompletionOutputChunk, but for what was said.
template <typename Output>
void FillOutput(const ReplyPart& part, const ReplyHead& head, const ServiceContext& context,
                Output& output) {
  output.set_finish_reason(ReasonFor(part, context));
  output.set_index(static_cast<std::int32_t>(part.index));
  if (head.logprobs == ReportLogprobs::kNo) {
    return;
  }
  for (const GeneratedToken& token : part.tokens) {
    xai_api::LogProb& entry = *output.mutable_logprobs()->add_content();
    FillLogprob(token.id, token.logprob, context, entry);
    for (const TokenLogprob& candidate : token.top_logprobs) {
      FillLogprob(candidate.id, candidate.logprob, context, *entry.add_top_logprobs());
    }
  }
}

// CompletionMessage or Delta.
template <typename Said>
void FillSaid(const ReplyPart& part, Said& said) {
  said.set_role(xai_api::ROLE_ASSISTANT);
  said.set_content(part.content);
  said.set_reasoning_content(part.reasoning);
  for (const ToolCall& call : part.tool_calls) {
    xai_api::ToolCall& added = *said.add_tool_calls();
    added.set_id(call.id);
    added.set_type(xai_api::TOOL_CALL_TYPE_CLIENT_SIDE_TOOL);
    added.set_status(xai_api::TOOL_CALL_STATUS_COMPLETED);
    added.mutable_function()->set_name(call.name);
    added.mutable_function()->set_arguments(call.arguments);
  }
}

// One call; every message repeats when the call was made.
class XaiCodec final : public MessageCodec {
 public:
  XaiCodec(const ServiceContext& context, Delivery delivery)
      : context_(context), delivery_(delivery), created_s_(std::time(nullptr)) {}

  Status Read(const grpc::ByteBuffer& bytes, Ask& ask) override {
    xai_api::GetCompletionsRequest message;
    DSA_RETURN_IF_ERROR(ParseMessage(bytes, UnknownFields::kIgnored, message));
    return ToAsk(message, ask);
  }

  std::vector<grpc::ByteBuffer> Encode(const ReplyPart& part, const ReplyHead& head) override {
    if (delivery_ == Delivery::kWhole) {
      xai_api::GetChatCompletionResponse response;
      const auto add = [&](const ReplyPart& answer) {
        xai_api::CompletionOutput& output = *response.add_outputs();
        FillOutput(answer, head, context_, output);
        FillSaid(answer, *output.mutable_message());
      };
      add(part);
      std::for_each(part.others.begin(), part.others.end(), add);
      return {Finished(part, head, response)};
    }
    xai_api::GetChatCompletionChunk chunk;
    xai_api::CompletionOutputChunk& output = *chunk.add_outputs();
    FillOutput(part, head, context_, output);
    FillSaid(part, *output.mutable_delta());
    return {Finished(part, head, chunk)};
  }

 private:
  template <typename Response>
  grpc::ByteBuffer Finished(const ReplyPart& part, const ReplyHead& head,
                            Response& response) const {
    response.set_id(head.request_id);
    response.mutable_created()->set_seconds(created_s_);
    response.set_model(context_.model.id);
    response.set_system_fingerprint(context_.server.instance);
    const auto count = [](std::int64_t tokens) { return static_cast<std::int32_t>(tokens); };
    xai_api::SamplingUsage& usage = *response.mutable_usage();
    usage.set_completion_tokens(count(part.usage.completion_tokens));
    usage.set_prompt_tokens(count(part.usage.prompt_tokens));
    usage.set_total_tokens(count(part.usage.prompt_tokens + part.usage.completion_tokens));
    usage.set_prompt_text_tokens(count(part.usage.prompt_tokens));
    usage.set_reasoning_tokens(count(part.reasoning_tokens));
    usage.set_cached_prompt_text_tokens(count(part.usage.cache_hit_tokens));
    return Serialize(response);
  }

  const ServiceContext& context_;
  const Delivery delivery_;
  const std::time_t created_s_;
};

}  // namespace

std::unique_ptr<MessageCodec> MakeXaiWholeCodec(const ServiceContext& context) {
  return std::make_unique<XaiCodec>(context, Delivery::kWhole);
}

std::unique_ptr<MessageCodec> MakeXaiStreamCodec(const ServiceContext& context) {
  return std::make_unique<XaiCodec>(context, Delivery::kStream);
}

}  // namespace dsa
