// From messages of dsa.v1 to what the engine understands.  Every field is either used or refused;
// a test walks the descriptors for that.  Errors name the field as the client wrote it.
#pragma once

#include "common/status.h"
#include "proto/chat.pb.h"
#include "proto/completion.pb.h"
#include "proto/token.pb.h"
#include "scheduler/request.h"
#include "server/api/reply.h"
#include "server/api/service_context.h"
#include "server/grpc/v1/encode.h"
#include "tokenizer/chat_template.h"

#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// A request ready for Engine::Submit but for its ids, arrival and deadline.
struct Generation {
  Request request;
  ReplyFormat format;
  ReportLogprobs logprobs = ReportLogprobs::kNo;
};

// NOT_FOUND unless `model` is empty or the one served.
Status CheckModel(std::string_view model, const ServiceContext& context);

// INVALID_ARGUMENT, UNIMPLEMENTED, NOT_FOUND, or FAILED_PRECONDITION where the model has no chat
// format or no tokenizer.  Renders and encodes the prompt.
Result<Generation> Translate(const v1::ChatRequest& message, const ServiceContext& context);
Result<Generation> Translate(const v1::CompletionRequest& message, const ServiceContext& context);

// FAILED_PRECONDITION without a tokenizer or a chat format.  `path` opens the names of fields in
// errors: "" or "conversation.".
Result<RenderedPrompt> RenderConversation(const v1::Conversation& message, std::string_view path,
                                          const ServiceContext& context);

// FAILED_PRECONDITION without a tokenizer.
Result<const Tokenizer*> NeedTokenizer(const ServiceContext& context);

// INVALID_ARGUMENT naming `field`, the index and the id unless all lie in [0, vocabulary).
Result<std::vector<TokenId>> ToTokenIds(const google::protobuf::RepeatedField<std::int64_t>& ids,
                                        std::string_view field, const ServiceContext& context);

// Full names of the fields that are refused where they are set, such as
// "dsa.v1.SamplingParams.logit_bias".
const std::vector<std::string_view>& RefusedFields();

}  // namespace dsa
