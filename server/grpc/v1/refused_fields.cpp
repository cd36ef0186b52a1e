#include "server/api/errors.h"
#include "server/api/request_ids.h"
#include "server/grpc/v1/translate.h"

#include <algorithm>
#include <string>

#include <fmt/core.h>
#include <google/protobuf/descriptor.h>

namespace dsa {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

bool IsRefused(const FieldDescriptor& field) {
  const auto& refused = RefusedFields();
  return std::find(refused.begin(), refused.end(), field.full_name()) != refused.end();
}

// A response format, where the field is one.
const v1::ResponseFormat* FormatIn(const Message& message, const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE
             ? google::protobuf::DynamicCastToGenerated<v1::ResponseFormat>(
                   &message.GetReflection()->GetMessage(message, &field))
             : nullptr;
}

// Of a refused field whose value is not what happens without it; OK otherwise.
Status CheckRefused(const Message& message, const FieldDescriptor& field, const std::string& name) {
  constexpr std::size_t kShownBytesMax = 64;
  const v1::ResponseFormat* const format = FormatIn(message, field);
  if (format == nullptr) {
    return NotSupportedError(name);
  }
  if (format->type() != "text") {
    return NotSupportedError(name, fmt::format("the type \"{}\" is not \"text\"",
                                               Escape(format->type(), kShownBytesMax)));
  }
  return format->json_schema().empty()
             ? Status()
             : NotSupportedError(name, fmt::format("a json_schema of {} bytes, none is allowed",
                                                   format->json_schema().size()));
}

Status CheckMessageAt(const Message& message, const std::string& path) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);  // those that are set
  for (const FieldDescriptor* field : fields) {
    const std::string name = path + field->name();
    if (IsRefused(*field)) {
      DSA_RETURN_IF_ERROR(CheckRefused(message, *field, name));
      continue;
    }
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_map()) {
      continue;
    }
    if (!field->is_repeated()) {
      DSA_RETURN_IF_ERROR(CheckMessageAt(reflection.GetMessage(message, field), name + "."));
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
      DSA_RETURN_IF_ERROR(CheckMessageAt(reflection.GetRepeatedMessage(message, field, i),
                                         fmt::format("{}[{}].", name, i)));
    }
  }
  return {};
}

}  // namespace

const std::vector<std::string_view>& RefusedFields() {
  static const std::vector<std::string_view> fields = {
      "dsa.v1.ChatRequest.response_format",
      "dsa.v1.CompletionRequest.response_format",
  };
  return fields;
}

Status CheckNoRefusedFields(const Message& message) {
  return CheckMessageAt(message, "");
}

}  // namespace dsa
