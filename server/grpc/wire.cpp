#include "server/grpc/wire.h"

#include <vector>

#include <fmt/core.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/support/proto_buffer_reader.h>

namespace dsa {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr int kNestingMax = 16;
constexpr std::size_t kMessageBytesMax = 1024;

// The first unknown field of `message` or of a message in it, as INVALID_ARGUMENT.
Status CheckAllKnown(const Message& message, const std::string& path) {
  const Reflection& reflection = *message.GetReflection();
  const auto& unknown = reflection.GetUnknownFields(message);
  if (!unknown.empty()) {
    return InvalidArgument(
        fmt::format("{}: no field has number {}", path, unknown.field(0).number()));
  }
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      continue;
    }
    const std::string name = fmt::format("{}.{}", path, field->name());
    if (!field->is_repeated()) {
      DSA_RETURN_IF_ERROR(CheckAllKnown(reflection.GetMessage(message, field), name));
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
      DSA_RETURN_IF_ERROR(CheckAllKnown(reflection.GetRepeatedMessage(message, field, i),
                                        fmt::format("{}[{}]", name, i)));
    }
  }
  return {};
}

}  // namespace

Status ParseMessage(const grpc::ByteBuffer& bytes, UnknownFields unknown, Message& message) {
  grpc::ByteBuffer copy(bytes);  // shares the slices; the reader wants it writable
  grpc::ProtoBufferReader reader(&copy);
  google::protobuf::io::CodedInputStream stream(&reader);
  stream.SetRecursionLimit(kNestingMax);
  const std::string name = message.GetDescriptor()->name();
  if (!reader.status().ok() || !message.ParseFromCodedStream(&stream) ||
      !stream.ConsumedEntireMessage()) {
    return InvalidArgument(
        fmt::format("{}: not a valid protobuf message, or it has text that is not UTF-8", name));
  }
  return unknown == UnknownFields::kIgnored ? Status() : CheckAllKnown(message, name);
}

grpc::ByteBuffer Serialize(const Message& message) {
  const std::string bytes = message.SerializeAsString();
  const grpc::Slice slice(bytes);
  return {&slice, 1};
}

grpc::Status ToGrpc(const Error& error) {
  grpc::StatusCode code = grpc::StatusCode::INTERNAL;
  switch (error.code) {
    case ErrorCode::kInvalidArgument: code = grpc::StatusCode::INVALID_ARGUMENT; break;
    case ErrorCode::kNotFound: code = grpc::StatusCode::NOT_FOUND; break;
    case ErrorCode::kAlreadyExists: code = grpc::StatusCode::ALREADY_EXISTS; break;
    case ErrorCode::kResourceExhausted: code = grpc::StatusCode::RESOURCE_EXHAUSTED; break;
    case ErrorCode::kUnavailable: code = grpc::StatusCode::UNAVAILABLE; break;
    case ErrorCode::kDeadlineExceeded: code = grpc::StatusCode::DEADLINE_EXCEEDED; break;
    case ErrorCode::kCancelled: code = grpc::StatusCode::CANCELLED; break;
    case ErrorCode::kUnimplemented: code = grpc::StatusCode::UNIMPLEMENTED; break;
    case ErrorCode::kFailedPrecondition: code = grpc::StatusCode::FAILED_PRECONDITION; break;
    case ErrorCode::kInternal: code = grpc::StatusCode::INTERNAL; break;
  }
  std::string message = error.message.substr(0, kMessageBytesMax);
  for (char& c : message) {
    c = static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return {code, message};
}

grpc::Status ToGrpc(const Status& status) {
  return status.ok() ? grpc::Status::OK : ToGrpc(status.error());
}

}  // namespace dsa
