#include "server/grpc/reflection_service.h"

#include "proto/reflection.grpc.pb.h"
#include "server/grpc/wire.h"

#include <memory>
#include <set>
#include <utility>

#include <fmt/core.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <grpcpp/support/server_callback.h>

namespace dsa {
namespace {

using google::protobuf::DescriptorPool;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;
using grpc::reflection::v1::ServerReflection;
using grpc::reflection::v1::ServerReflectionRequest;
using grpc::reflection::v1::ServerReflectionResponse;

// On the thread that everybody's calls come through.
constexpr std::size_t kRequestBytesMax = 4096;

const DescriptorPool& Pool() {
  return *DescriptorPool::generated_pool();
}

void Refuse(grpc::StatusCode code, const std::string& message, ServerReflectionResponse& response) {
  response.mutable_error_response()->set_error_code(code);
  response.mutable_error_response()->set_error_message(message);
}

// The file, and all that it imports; null: there is none.
void Describe(const FileDescriptor* file, ServerReflectionResponse& response) {
  if (file == nullptr) {
    Refuse(grpc::StatusCode::NOT_FOUND, "no such file, symbol or extension", response);
    return;
  }
  std::vector<const FileDescriptor*> files = {file};
  std::set<const FileDescriptor*> known = {file};
  for (std::size_t i = 0; i < files.size(); ++i) {
    google::protobuf::FileDescriptorProto message;
    files[i]->CopyTo(&message);
    response.mutable_file_descriptor_response()->add_file_descriptor_proto(
        message.SerializeAsString());
    for (int j = 0; j < files[i]->dependency_count(); ++j) {
      if (const FileDescriptor* imported = files[i]->dependency(j); known.insert(imported).second) {
        files.push_back(imported);
      }
    }
  }
}

void DescribeExtension(const grpc::reflection::v1::ExtensionRequest& wanted,
                       ServerReflectionResponse& response) {
  const auto* type = Pool().FindMessageTypeByName(wanted.containing_type());
  const FieldDescriptor* extension =
      type == nullptr ? nullptr : Pool().FindExtensionByNumber(type, wanted.extension_number());
  Describe(extension == nullptr ? nullptr : extension->file(), response);
}

void ListExtensions(const std::string& name, ServerReflectionResponse& response) {
  const auto* type = Pool().FindMessageTypeByName(name);
  if (type == nullptr) {
    Describe(nullptr, response);
    return;
  }
  auto& numbers = *response.mutable_all_extension_numbers_response();
  numbers.set_base_type_name(name);
  std::vector<const FieldDescriptor*> extensions;
  Pool().FindAllExtensions(type, &extensions);
  for (const FieldDescriptor* extension : extensions) {
    numbers.add_extension_number(extension->number());
  }
}

ServerReflectionResponse AnswerTo(const ServerReflectionRequest& request,
                                  const std::vector<std::string>& services) {
  ServerReflectionResponse response;
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  switch (request.message_request_case()) {
    case ServerReflectionRequest::kFileByFilename:
      Describe(Pool().FindFileByName(request.file_by_filename()), response);
      break;
    case ServerReflectionRequest::kFileContainingSymbol:
      Describe(Pool().FindFileContainingSymbol(request.file_containing_symbol()), response);
      break;
    case ServerReflectionRequest::kFileContainingExtension:
      DescribeExtension(request.file_containing_extension(), response);
      break;
    case ServerReflectionRequest::kAllExtensionNumbersOfType:
      ListExtensions(request.all_extension_numbers_of_type(), response);
      break;
    case ServerReflectionRequest::kListServices:
      for (const std::string& service : services) {
        response.mutable_list_services_response()->add_service()->set_name(service);
      }
      break;
    case ServerReflectionRequest::MESSAGE_REQUEST_NOT_SET:
      Refuse(grpc::StatusCode::INVALID_ARGUMENT, "message_request: missing", response);
      break;
  }
  return response;
}

// One call: a read or a write is always under way, and ends the call where it fails.  Deletes
// itself in OnDone.
class ReflectionCall final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit ReflectionCall(std::shared_ptr<const std::vector<std::string>> services)
      : services_(std::move(services)) {
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status::OK);  // the client has no more questions
      return;
    }
    ServerReflectionRequest message;
    const Status parsed = Parse(message);
    if (!parsed.ok()) {
      Finish(ToGrpc(parsed));
      return;
    }
    response_ = Serialize(AnswerTo(message, *services_));
    StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status::CANCELLED);
      return;
    }
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  Status Parse(ServerReflectionRequest& message) const {
    if (request_.Length() > kRequestBytesMax) {
      return InvalidArgument(fmt::format("ServerReflectionRequest: {} bytes, at most {}",
                                         request_.Length(), kRequestBytesMax));
    }
    return ParseMessage(request_, UnknownFields::kIgnored, message);
  }

  const std::shared_ptr<const std::vector<std::string>> services_;
  grpc::ByteBuffer request_;   // being read
  grpc::ByteBuffer response_;  // being written
};

class ReflectionService final : public ServerReflection::WithRawCallbackMethod_ServerReflectionInfo<
                                    ServerReflection::Service> {
 public:
  explicit ReflectionService(std::vector<std::string> services)
      : services_(std::make_shared<const std::vector<std::string>>(std::move(services))) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ServerReflectionInfo(
      grpc::CallbackServerContext* /*rpc*/) override {
    return new ReflectionCall(services_);
  }

 private:
  const std::shared_ptr<const std::vector<std::string>> services_;
};

}  // namespace

NamedService MakeReflectionService(std::vector<std::string> services) {
  const std::string name = ServerReflection::service_full_name();
  services.push_back(name);
  return {name, std::make_unique<ReflectionService>(std::move(services))};
}

}  // namespace dsa
