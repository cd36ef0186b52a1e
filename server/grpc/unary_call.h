// The short calls: parse, answer, done; on the gRPC thread that brought them or, where their
// message is not short, by the text workers.
#pragma once

#include "common/status.h"
#include "server/api/service_context.h"
#include "server/grpc/wire.h"

#include <functional>
#include <string_view>

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

namespace dsa {

// One call of a raw unary method.  All of it lives until the call is done.
struct UnaryCall {
  std::string_view name;  // "TokenService/Tokenize"
  ServiceContext& context;
  grpc::CallbackServerContext& rpc;
  const grpc::ByteBuffer& request;
  grpc::ByteBuffer& response;
  UnknownFields unknown = UnknownFields::kRefused;
};

// Of another's protocol, whose clients may be newer than we are.
inline UnaryCall LenientCall(std::string_view name, ServiceContext& context,
                             grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request,
                             grpc::ByteBuffer* response) {
  return {.name = name,
          .context = context,
          .rpc = *rpc,
          .request = *request,
          .response = *response,
          .unknown = UnknownFields::kIgnored};
}

// Sends what `answer` makes of the request, message or error, and logs.
using UnaryAnswer = std::function<Result<grpc::ByteBuffer>(const grpc::ByteBuffer& request)>;
grpc::ServerUnaryReactor* AnswerUnary(const UnaryCall& call, UnaryAnswer answer);

// As above, for a function of the parsed message: Result<Response>(const Request&).
template <typename RequestMessage, typename ResponseMessage>
grpc::ServerUnaryReactor* Answer(const UnaryCall& call,
                                 Result<ResponseMessage> (*handle)(const RequestMessage&,
                                                                   const ServiceContext&)) {
  const ServiceContext& context = call.context;
  return AnswerUnary(
      call,
      [&context, handle,
       unknown = call.unknown](const grpc::ByteBuffer& bytes) -> Result<grpc::ByteBuffer> {
        RequestMessage request;
        DSA_RETURN_IF_ERROR(ParseMessage(bytes, unknown, request));
        DSA_ASSIGN_OR_RETURN(const ResponseMessage response, handle(request, context));
        return Serialize(response);
      });
}

}  // namespace dsa
