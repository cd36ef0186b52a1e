// Parts of an answer as messages of dsa.v1.
#pragma once

#include "proto/chat.pb.h"
#include "proto/completion.pb.h"
#include "server/api/reply.h"
#include "server/api/service_context.h"

#include <cstdint>
#include <string>

namespace dsa {

enum class ReportLogprobs : std::uint8_t { kNo, kYes };

// What every message of an answer repeats.
struct ReplyHead {
  std::string request_id;
  std::uint64_t seed = 0;
  ReportLogprobs logprobs = ReportLogprobs::kNo;
};

v1::ChatResponse EncodeChat(const ReplyPart& reply, const ReplyHead& head,
                            const ServiceContext& context);
v1::ChatStreamResponse EncodeChatPart(const ReplyPart& part, const ReplyHead& head,
                                      const ServiceContext& context);
v1::CompletionResponse EncodeCompletion(const ReplyPart& reply, const ReplyHead& head,
                                        const ServiceContext& context);
v1::CompletionStreamResponse EncodeCompletionPart(const ReplyPart& part, const ReplyHead& head,
                                                  const ServiceContext& context);

// In words, for logs: "stop", "tool_calls".
std::string_view ToString(ReplyFinish finish);

}  // namespace dsa
