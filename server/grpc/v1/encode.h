// Parts of an answer as messages of dsa.v1.
#pragma once

#include "proto/chat.pb.h"
#include "proto/completion.pb.h"
#include "server/api/reply.h"
#include "server/api/service_context.h"

namespace dsa {

v1::ChatResponse EncodeChat(const ReplyPart& reply, const ReplyHead& head,
                            const ServiceContext& context);
v1::ChatStreamResponse EncodeChatPart(const ReplyPart& part, const ReplyHead& head,
                                      const ServiceContext& context);
v1::CompletionResponse EncodeCompletion(const ReplyPart& reply, const ReplyHead& head,
                                        const ServiceContext& context);
v1::CompletionStreamResponse EncodeCompletionPart(const ReplyPart& part, const ReplyHead& head,
                                                  const ServiceContext& context);

}  // namespace dsa
