#include "server/api/errors.h"
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

// Whether what a refused field says is what happens without it.
bool ChangesNothing(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE: {
      const auto* format = google::protobuf::DynamicCastToGenerated<v1::ResponseFormat>(
          &reflection.GetMessage(message, &field));
      return format != nullptr && format->type() == "text" && format->json_schema().empty();
    }
    default: return false;
  }
}

Status CheckMessageAt(const Message& message, const std::string& path) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);  // those that are set
  for (const FieldDescriptor* field : fields) {
    const std::string name = path + field->name();
    if (IsRefused(*field) && ChangesNothing(message, *field)) {
      continue;
    }
    if (IsRefused(*field)) {
      return NotSupportedError(name);
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
