#include "server/api/unary_call.h"

#include "common/log.h"
#include "server/api/call_info.h"
#include "server/api/wire.h"

namespace dsa {

grpc::ServerUnaryReactor* AnswerUnary(const UnaryCall& call, google::protobuf::Message& request,
                                      const google::protobuf::Message& response,
                                      const std::function<Status()>& handle) {
  const MonotonicUs start_us = call.context.clock.NowUs();
  Status status = ParseStrictly(call.request, request);
  if (status.ok()) {
    status = handle();
  }
  if (status.ok()) {
    call.response = Serialize(response);
  }
  const std::string request_id = ClientRequestId(call.rpc);
  if (IsRequestId(request_id)) {
    // Where the calls of chat and completion have it, too.
    if (status.ok()) {
      call.rpc.AddInitialMetadata(kRequestIdHeader, request_id);
    } else {
      call.rpc.AddTrailingMetadata(kRequestIdHeader, request_id);
    }
  }
  const grpc::Status answer = ToGrpc(status);
  Log(LogLevel::kInfo, "request",
      {{"id", Escape(request_id, kLoggedBytesMax)},
       {"method", call.name},
       {"code", CodeName(answer.error_code())},
       {"error", Escape(answer.error_message(), kLoggedBytesMax)},
       {"total_ms", static_cast<double>(call.context.clock.NowUs() - start_us) / 1000.0}});
  grpc::ServerUnaryReactor* reactor = call.rpc.DefaultReactor();
  reactor->Finish(answer);
  return reactor;
}

}  // namespace dsa
