// From messages of dsa.v1 to what no protocol knows.  Every field is either used or refused; a test
// walks the descriptors for that.  Errors name the field as the client wrote it.
#pragma once

#include "common/status.h"
#include "proto/chat.pb.h"
#include "proto/completion.pb.h"
#include "proto/token.pb.h"
#include "server/api/ask.h"
#include "server/api/prompt.h"
#include "tokenizer/chat_template.h"

#include <string_view>
#include <vector>

#include <google/protobuf/message.h>

namespace dsa {

// The fields of an Ask in ChatRequest and CompletionRequest.
inline constexpr FieldNames kFieldNames = {.request_id = "request_id",
                                           .model = "model",
                                           .prompt = "prompt",
                                           .token_ids = "token_ids.ids",
                                           .add_bos = "add_bos",
                                           .chat = {.prefix = "", .tool = ".function_json"},
                                           .temperature = "sampling.temperature",
                                           .top_p = "sampling.top_p",
                                           .min_p = "sampling.min_p",
                                           .top_k = "sampling.top_k",
                                           .frequency_penalty = "sampling.frequency_penalty",
                                           .presence_penalty = "sampling.presence_penalty",
                                           .repetition_penalty = "sampling.repetition_penalty",
                                           .logit_bias = "sampling.logit_bias",
                                           .n = "sampling.n",
                                           .max_tokens = "stop.max_tokens",
                                           .min_tokens = "stop.min_tokens",
                                           .stop = "stop.stop",
                                           .stop_token_ids = "stop.stop_token_ids",
                                           .logprobs = "logprobs",
                                           .top_logprobs = "top_logprobs",
                                           .prompt_logprobs = "prompt_logprobs",
                                           .cache_salt = "cache_salt",
                                           .priority = "priority"};
// Of a Conversation that is a field itself.
inline constexpr ChatFieldNames kConversationNames = {.prefix = "conversation.",
                                                      .tool = ".function_json"};

// `ask` gets the request's id also where the rest is refused: INVALID_ARGUMENT or UNIMPLEMENTED.
Status ToAsk(const v1::ChatRequest& message, Ask& ask);
Status ToAsk(const v1::CompletionRequest& message, Ask& ask);

// INVALID_ARGUMENT for an unknown role, named as `names` has it.
Result<Chat> ToChat(const v1::Conversation& message, const ChatFieldNames& names);

// UNIMPLEMENTED naming the field where a field of RefusedFields() is set in `message`, or in a
// message in it, to a value that would change anything.
Status CheckNoRefusedFields(const google::protobuf::Message& message);

// Full names of the fields that are refused where they are set, such as
// "dsa.v1.ChatRequest.response_format".
const std::vector<std::string_view>& RefusedFields();

}  // namespace dsa
