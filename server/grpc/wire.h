// Between gRPC's bytes and our messages and errors.  Requests are parsed here, and not by gRPC's
// generated handlers, which answer a malformed one with UNIMPLEMENTED and no message.
#pragma once

#include "common/status.h"

#include <cstdint>

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

namespace dsa {

// What becomes of a field, at any depth, that the message's type does not have: a client of our own
// protocol has made a mistake, one of another's may be newer than we are.
enum class UnknownFields : std::uint8_t { kRefused, kIgnored };

// Parses `bytes` into `message`.  INVALID_ARGUMENT for what is no such message, for strings that
// are not UTF-8, for nesting deeper than 16 and for fields that are `unknown` and refused.
Status ParseMessage(const grpc::ByteBuffer& bytes, UnknownFields unknown,
                    google::protobuf::Message& message);

grpc::ByteBuffer Serialize(const google::protobuf::Message& message);

// The same code; the message on one line and at most 1024 bytes.
grpc::Status ToGrpc(const Error& error);
grpc::Status ToGrpc(const Status& status);

}  // namespace dsa
