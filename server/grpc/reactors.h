// gRPC's callback objects for our raw methods.  Each lives from the start of a call until its
// OnDone, where it deletes itself, as the callback API wants.
#pragma once

#include "server/api/generation_call.h"
#include "server/grpc/message_codec.h"

#include <memory>
#include <string_view>

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

namespace dsa {

// What the methods that generate differ in.
struct GenerationMethod {
  std::string_view name;  // "ChatService/Chat"
  const FieldNames* fields;
  std::unique_ptr<MessageCodec> (*codec)(const ServiceContext& context);  // of one call
};

// The reactors of a chat or completion call.  Called by gRPC on one of its threads.
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartStream(const GenerationMethod& method,
                                                        ServiceContext& context,
                                                        grpc::CallbackServerContext& rpc,
                                                        const grpc::ByteBuffer& request);

// `response` lives as long as the call.
grpc::ServerUnaryReactor* StartWhole(const GenerationMethod& method, ServiceContext& context,
                                     grpc::CallbackServerContext& rpc,
                                     const grpc::ByteBuffer& request, grpc::ByteBuffer& response);

// A stream that ends with `error` alone.
grpc::ServerWriteReactor<grpc::ByteBuffer>* RefuseStream(const Error& error);

}  // namespace dsa
