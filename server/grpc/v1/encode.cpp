#include "server/grpc/v1/encode.h"

#include <optional>

namespace dsa {
namespace {

v1::FinishReason ToProto(const std::optional<ReplyFinish>& finish) {
  if (!finish) {
    return v1::FINISH_REASON_UNSPECIFIED;
  }
  switch (*finish) {
    case ReplyFinish::kStop: return v1::FINISH_REASON_STOP;
    case ReplyFinish::kLength: return v1::FINISH_REASON_LENGTH;
    case ReplyFinish::kToolCalls: return v1::FINISH_REASON_TOOL_CALLS;
    case ReplyFinish::kCancelled: return v1::FINISH_REASON_CANCELLED;
    case ReplyFinish::kDeadline: return v1::FINISH_REASON_DEADLINE;
    case ReplyFinish::kAborted: return v1::FINISH_REASON_ABORTED;
    case ReplyFinish::kError: return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_ERROR;
}

void FillCost(const Usage& usage, std::int64_t price_per_hour_cents, v1::RequestCost& target) {
  constexpr double kCentsPerDollar = 100.0;
  constexpr double kUsPerHour = 3600e6;
  target.set_prefill_device_us(usage.cost.prefill_us);
  target.set_decode_device_us(usage.cost.decode_us);
  target.set_cached_tokens(usage.cache_hit_tokens);
  if (price_per_hour_cents > 0) {
    target.set_dollars((usage.cost.prefill_us + usage.cost.decode_us) / kUsPerHour *
                       static_cast<double>(price_per_hour_cents) / kCentsPerDollar);
  }
}

void FillUsage(const ReplyPart& part, const ReplyHead& head, const ServiceContext& context,
               v1::Usage& target) {
  constexpr double kUsPerMs = 1000.0;
  const Usage& usage = part.usage;
  target.set_prompt_tokens(usage.prompt_tokens);
  target.set_completion_tokens(usage.completion_tokens);
  target.set_reasoning_tokens(part.reasoning_tokens);
  target.set_cache_hit_tokens(usage.cache_hit_tokens);
  target.set_cache_miss_tokens(usage.prompt_tokens - usage.cache_hit_tokens);
  target.set_queue_ms(static_cast<double>(usage.queue_us) / kUsPerMs);
  target.set_prefill_ms(static_cast<double>(usage.prefill_us) / kUsPerMs);
  target.set_decode_ms(static_cast<double>(usage.decode_us) / kUsPerMs);
  target.set_total_tokens(usage.prompt_tokens + usage.completion_tokens);
  target.set_preemptions(usage.preemptions);
  if (head.cost == ReportCost::kYes) {
    FillCost(usage, context.server.price_per_hour_cents, *target.mutable_cost());
  }
}

std::string TokenBytes(TokenId id, const ServiceContext& context) {
  return context.tokenizer == nullptr ? std::string() : std::string(context.tokenizer->Bytes(id));
}

void FillLogprob(const GeneratedToken& token, const ServiceContext& context,
                 v1::TokenLogprob& target) {
  target.set_token_id(Value(token.id));
  target.set_logprob(token.logprob);
  target.set_token(TokenBytes(token.id, context));
  for (const TokenLogprob& candidate : token.top_logprobs) {
    v1::TopLogprob& top = *target.add_top();
    top.set_token_id(Value(candidate.id));
    top.set_logprob(candidate.logprob);
    top.set_token(TokenBytes(candidate.id, context));
  }
}

template <typename Response>
void FillPromptLogprobs(const ReplyPart& part, const ServiceContext& context, Response& response) {
  for (const GeneratedToken& token : part.prompt) {
    FillLogprob(token, context, *response.add_prompt_logprobs());
  }
}

template <typename Response>
void FillLogprobs(const ReplyPart& part, const ReplyHead& head, const ServiceContext& context,
                  Response& response) {
  if (head.logprobs == ReportLogprobs::kNo) {
    return;
  }
  for (const GeneratedToken& token : part.tokens) {
    FillLogprob(token, context, *response.add_logprobs());
  }
}

// Fields that messages and further choices have.
template <typename Target>
void FillEnd(const ReplyPart& part, const ReplyHead& head, const ServiceContext& context,
             Target& target) {
  target.set_seed(head.seed + static_cast<std::uint64_t>(part.index));
  target.set_finish_reason(ToProto(part.finish));
  FillLogprobs(part, head, context, target);
}

// Fields that all four messages have.
template <typename Response>
void FillCommon(const ReplyPart& part, const ReplyHead& head, const ServiceContext& context,
                Response& response) {
  response.set_request_id(head.request_id);
  response.set_model(context.model.id);
  FillEnd(part, head, context, response);
  FillUsage(part, head, context, *response.mutable_usage());
}

// Message and ChatStreamResponse.
template <typename Target>
void FillChat(const ReplyPart& part, Target& target) {
  target.set_reasoning_content(part.reasoning);
  for (const ToolCall& call : part.tool_calls) {
    v1::ToolCall& added = *target.add_tool_calls();
    added.set_id(call.id);
    added.set_name(call.name);
    added.set_arguments(call.arguments);
  }
}

void FillMessage(const ReplyPart& reply, v1::Message& message) {
  message.set_role(v1::ROLE_ASSISTANT);
  FillChat(reply, message);
  // An assistant that only calls tools says nothing, which is not the same as saying "".
  if (!reply.content.empty() || reply.tool_calls.empty()) {
    message.set_content(reply.content);
  }
}

template <typename Response>
void FillCompletion(const ReplyPart& part, Response& response) {
  response.set_text(part.content);
  for (const GeneratedToken& token : part.tokens) {
    response.add_token_ids(Value(token.id));
  }
}

}  // namespace

v1::ChatResponse EncodeChat(const ReplyPart& reply, const ReplyHead& head,
                            const ServiceContext& context) {
  v1::ChatResponse response;
  FillCommon(reply, head, context, response);
  FillMessage(reply, *response.mutable_message());
  for (const ReplyPart& other : reply.others) {
    v1::ChatChoice& choice = *response.add_more_choices();
    choice.set_index(other.index);
    FillMessage(other, *choice.mutable_message());
    FillEnd(other, head, context, choice);
  }
  return response;
}

v1::ChatStreamResponse EncodeChatPart(const ReplyPart& part, const ReplyHead& head,
                                      const ServiceContext& context) {
  v1::ChatStreamResponse response;
  FillCommon(part, head, context, response);
  FillChat(part, response);
  response.set_content(part.content);
  response.set_index(part.index);
  return response;
}

v1::CompletionResponse EncodeCompletion(const ReplyPart& reply, const ReplyHead& head,
                                        const ServiceContext& context) {
  v1::CompletionResponse response;
  FillCommon(reply, head, context, response);
  FillCompletion(reply, response);
  FillPromptLogprobs(reply, context, response);
  for (const ReplyPart& other : reply.others) {
    v1::CompletionChoice& choice = *response.add_more_choices();
    choice.set_index(other.index);
    FillCompletion(other, choice);
    FillEnd(other, head, context, choice);
  }
  return response;
}

v1::CompletionStreamResponse EncodeCompletionPart(const ReplyPart& part, const ReplyHead& head,
                                                  const ServiceContext& context) {
  v1::CompletionStreamResponse response;
  FillCommon(part, head, context, response);
  FillCompletion(part, response);
  FillPromptLogprobs(part, context, response);
  response.set_index(part.index);
  return response;
}

}  // namespace dsa
