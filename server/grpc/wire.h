// Between gRPC's bytes and our messages and errors.  Requests are parsed here, and not by gRPC's
// generated handlers, which answer a malformed one with UNIMPLEMENTED and no message.
#pragma once

#include "common/status.h"

#include <cstddef>
#include <cstdint>

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

namespace dsa {

// What becomes of a field, at any depth, that the message's type does not have: a client of our own
// protocol has made a mistake, one of another's may be newer than we are.
enum class UnknownFields : std::uint8_t { kRefused, kIgnored };

// What a message may have at any depth, however many bytes it may have: fields, and numbers of
// lists of numbers, as many as a text may have tokens.
inline constexpr std::size_t kMessageFieldsMax = std::size_t{1} << 18;
inline constexpr std::size_t kMessageNumbersMax = std::size_t{1} << 20;

// Parses `bytes` into `message`.  INVALID_ARGUMENT for what is no such message, for strings that
// are not UTF-8, for nesting deeper than 16, for more fields or numbers than there may be and for
// fields that are `unknown` and refused.
Status ParseMessage(const grpc::ByteBuffer& bytes, UnknownFields unknown,
                    google::protobuf::Message& message);

grpc::ByteBuffer Serialize(const google::protobuf::Message& message);

// The same code; the message on one line and at most 1024 bytes; google.rpc's details.
grpc::Status ToGrpc(const Error& error);
grpc::Status ToGrpc(const Status& status);

}  // namespace dsa
