#include "server/grpc/wire.h"

#include "server/grpc/error_details.h"
#include "tokenizer/utf8.h"

#include <cstddef>
#include <string_view>
#include <vector>

#include <fmt/core.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/unknown_field_set.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

namespace dsa {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr int kNestingMax = 16;
constexpr std::size_t kMessageBytesMax = 1024;

// Reads what a message is made of, without making it: a field of two bytes takes a hundred once it
// is read, and a message has millions.
class FieldCounter final {
 public:
  explicit FieldCounter(CodedInputStream& stream) : stream_(stream) {}

  // False where there are more than may be.  What cannot be read counts no further: the parser will
  // say so.
  bool Count(const Descriptor* type, int nesting) {
    std::uint32_t tag = 0;
    while (CountsOn() && (tag = stream_.ReadTag()) != 0) {
      const FieldDescriptor* field =
          type == nullptr ? nullptr
                          : type->FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
      const bool is_packed =
          WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
      const bool is_number = field != nullptr && field->is_packable() && !is_packed;
      ++(is_number ? numbers_ : fields_);
      if (!Pass(tag, field, nesting)) {
        return CountsOn();
      }
    }
    return CountsOn();
  }

  std::size_t fields() const { return fields_; }
  std::size_t numbers() const { return numbers_; }

 private:
  bool CountsOn() const { return fields_ <= kMessageFieldsMax && numbers_ <= kMessageNumbersMax; }

  // False where it ends too early, or nothing more need be counted.
  bool Pass(std::uint32_t tag, const FieldDescriptor* field, int nesting) {
    switch (WireFormatLite::GetTagWireType(tag)) {
      case WireFormatLite::WIRETYPE_LENGTH_DELIMITED: return CountWithin(field, nesting);
      case WireFormatLite::WIRETYPE_START_GROUP:  // whose fields count as others
      case WireFormatLite::WIRETYPE_END_GROUP: return true;
      default: return WireFormatLite::SkipField(&stream_, tag);
    }
  }

  bool CountWithin(const FieldDescriptor* field, int nesting) {
    std::uint32_t bytes = 0;
    if (!stream_.ReadVarint32(&bytes)) {
      return false;
    }
    const bool is_message = field != nullptr && field->message_type() != nullptr;
    if (is_message && nesting < kNestingMax) {
      const auto limit = stream_.PushLimit(static_cast<int>(bytes));
      const bool all = Count(field->message_type(), nesting + 1);
      stream_.PopLimit(limit);
      return all;
    }
    if (field != nullptr && field->is_packable()) {
      return CountPacked(static_cast<int>(bytes));
    }
    return stream_.Skip(static_cast<int>(bytes));
  }

  bool CountPacked(int bytes) {
    const auto limit = stream_.PushLimit(bytes);
    std::uint64_t number = 0;
    bool all = true;
    while (all && CountsOn() && stream_.BytesUntilLimit() > 0) {
      all = stream_.ReadVarint64(&number);
      ++numbers_;
    }
    stream_.PopLimit(limit);
    return all;
  }

  CodedInputStream& stream_;
  std::size_t fields_ = 0;
  std::size_t numbers_ = 0;
};

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

// INVALID_ARGUMENT where the message would take far more memory than its bytes.
Status CheckFields(const grpc::ByteBuffer& bytes, const Descriptor& type) {
  if (bytes.Length() <= kMessageFieldsMax) {  // a field has a byte at least
    return {};
  }
  grpc::ByteBuffer copy(bytes);
  grpc::ProtoBufferReader reader(&copy);
  CodedInputStream stream(&reader);
  FieldCounter counter(stream);
  counter.Count(&type, 0);
  if (counter.fields() > kMessageFieldsMax) {
    return InvalidArgument(fmt::format("{}: more than {} fields, at most {}", type.name(),
                                       kMessageFieldsMax, kMessageFieldsMax));
  }
  if (counter.numbers() > kMessageNumbersMax) {
    return InvalidArgument(fmt::format("{}: more than {} ids, at most {}", type.name(),
                                       kMessageNumbersMax, kMessageNumbersMax));
  }
  return {};
}

// Also where a message quotes what a client sent.
std::string OnOneLine(std::string_view message) {
  std::string line(message.substr(0, kMessageBytesMax));
  for (char& c : line) {
    c = static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return IsValidUtf8(line) ? line : RepairUtf8(line);
}

}  // namespace

Status ParseMessage(const grpc::ByteBuffer& bytes, UnknownFields unknown, Message& message) {
  DSA_RETURN_IF_ERROR(CheckFields(bytes, *message.GetDescriptor()));
  grpc::ByteBuffer copy(bytes);  // shares the slices; the reader wants it writable
  grpc::ProtoBufferReader reader(&copy);
  CodedInputStream stream(&reader);
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
  const Error shown{error.code, OnOneLine(error.message)};
  return {code, shown.message, ErrorDetails(static_cast<int>(code), shown)};
}

grpc::Status ToGrpc(const Status& status) {
  return status.ok() ? grpc::Status::OK : ToGrpc(status.error());
}

}  // namespace dsa
