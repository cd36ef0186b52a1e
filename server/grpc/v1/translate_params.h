// The part of translation that chat and completion share.
#pragma once

#include "common/status.h"
#include "proto/common.pb.h"
#include "scheduler/request.h"
#include "server/api/service_context.h"

#include <google/protobuf/message.h>

namespace dsa {

// UNIMPLEMENTED naming the field where a field of RefusedFields() is set in `message`, or in a
// message in it, to a value that would change anything.
Status CheckNoRefusedFields(const google::protobuf::Message& message);

// Fills what the client left out from the model's defaults; draws the seed.
Result<SamplingParams> TranslateSampling(const v1::SamplingParams& message,
                                         const ServiceContext& context);

// `prompt_tokens` > 0 and what the context leaves decide max_tokens.
Result<StopConditions> TranslateStop(const v1::StopConditions& message, std::int64_t prompt_tokens,
                                     const ServiceContext& context);

// ChatRequest and CompletionRequest name these alike.
struct CommonFields {
  bool logprobs;
  std::optional<std::int64_t> top_logprobs;
  std::string_view cache_salt;
  std::int64_t priority;
};
Status TranslateCommon(const CommonFields& fields, Request& request);

}  // namespace dsa
