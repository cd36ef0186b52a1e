// vllm.grpc.engine's Generate: its message as an Ask, and parts of an answer as its messages.
#pragma once

#include "proto/vllm/engine.pb.h"
#include "server/api/ask.h"
#include "server/grpc/message_codec.h"

#include <memory>

namespace dsa {

// The fields of an Ask in GenerateRequest.
inline constexpr FieldNames kVllmFieldNames = {
    .request_id = "request_id",
    .model = "model",  // which the protocol does not have
    .prompt = "input",
    .token_ids = "tokenized.input_ids",
    .add_bos = "text",
    .chat = {.prefix = "", .tool = ""},
    .temperature = "sampling_params.temperature",
    .top_p = "sampling_params.top_p",
    .min_p = "sampling_params.min_p",
    .top_k = "sampling_params.top_k",
    .frequency_penalty = "sampling_params.frequency_penalty",
    .presence_penalty = "sampling_params.presence_penalty",
    .repetition_penalty = "sampling_params.repetition_penalty",
    .logit_bias = "sampling_params.logit_bias",
    .n = "sampling_params.n",
    .max_tokens = "sampling_params.max_tokens",
    .min_tokens = "sampling_params.min_tokens",
    .stop = "sampling_params.stop",
    .stop_token_ids = "sampling_params.stop_token_ids",
    .logprobs = "sampling_params.logprobs",
    .top_logprobs = "sampling_params.logprobs",
    .prompt_logprobs = "sampling_params.prompt_logprobs",
    .cache_salt = "cache_salt",  // nor these
    .priority = "priority"};

// `ask` gets the request's id also where the rest is refused: INVALID_ARGUMENT, or UNIMPLEMENTED
// for what is not done.
Status ToAsk(const vllm::grpc::engine::GenerateRequest& message, Ask& ask);

std::unique_ptr<MessageCodec> MakeVllmCodec(const ServiceContext& context);

}  // namespace dsa
