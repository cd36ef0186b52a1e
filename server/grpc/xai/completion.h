// xai_api's completions: their message as an Ask, and parts of an answer as their messages.
#pragma once

#include "proto/xai/chat.pb.h"
#include "server/api/ask.h"
#include "server/grpc/message_codec.h"

#include <memory>

namespace dsa {

// The fields of an Ask in GetCompletionsRequest.
inline constexpr FieldNames kXaiFieldNames = {
    .request_id = "request_id",  // which the protocol does not have
    .model = "model",
    .prompt = "messages",
    .token_ids = "messages",
    .add_bos = "messages",
    .chat = {.prefix = "", .tool = ".function"},
    .temperature = "temperature",
    .top_p = "top_p",
    .min_p = "min_p",  // nor these
    .top_k = "top_k",
    .frequency_penalty = "frequency_penalty",
    .presence_penalty = "presence_penalty",
    .repetition_penalty = "repetition_penalty",
    .logit_bias = "logit_bias",
    .n = "n",
    .max_tokens = "max_tokens",
    .min_tokens = "min_tokens",
    .stop = "stop",
    .stop_token_ids = "stop_token_ids",
    .logprobs = "logprobs",
    .top_logprobs = "top_logprobs",
    .prompt_logprobs = "prompt_logprobs",
    .cache_salt = "cache_salt",
    .priority = "priority"};

// INVALID_ARGUMENT, or UNIMPLEMENTED for what is not done.
Status ToAsk(const xai_api::GetCompletionsRequest& message, Ask& ask);

std::unique_ptr<MessageCodec> MakeXaiWholeCodec(const ServiceContext& context);
std::unique_ptr<MessageCodec> MakeXaiStreamCodec(const ServiceContext& context);

}  // namespace dsa
