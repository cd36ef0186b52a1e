// The short calls: parse, answer, done, all on the gRPC thread that brought them.
#pragma once

#include "common/status.h"
#include "server/api/service_context.h"

#include <functional>
#include <string_view>

#include <google/protobuf/message.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

namespace dsa {

// One call of a raw unary method.
struct UnaryCall {
  std::string_view name;  // "TokenService/Tokenize"
  ServiceContext& context;
  grpc::CallbackServerContext& rpc;
  const grpc::ByteBuffer& request;
  grpc::ByteBuffer& response;
};

// Parses into `request`, lets `handle` fill `response`, sends that or the error, and logs.
grpc::ServerUnaryReactor* AnswerUnary(const UnaryCall& call, google::protobuf::Message& request,
                                      const google::protobuf::Message& response,
                                      const std::function<Status()>& handle);

// As above, for a function of the parsed message: Result<Response>(const Request&).
template <typename RequestMessage, typename ResponseMessage>
grpc::ServerUnaryReactor* Answer(const UnaryCall& call,
                                 Result<ResponseMessage> (*handle)(const RequestMessage&,
                                                                   const ServiceContext&)) {
  RequestMessage request;
  ResponseMessage response;
  return AnswerUnary(call, request, response, [&]() -> Status {
    DSA_ASSIGN_OR_RETURN(response, handle(request, call.context));
    return {};
  });
}

}  // namespace dsa
