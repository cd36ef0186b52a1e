// Laws of reflection v1: one stream answers all questions, with all that a client needs to build
// the types.
#include "proto/reflection.grpc.pb.h"
#include "tests/api/loopback.h"

#include <set>

#include <catch2/catch.hpp>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

namespace dsa::reflection_test {
namespace {

using grpc::reflection::v1::ServerReflection;
using grpc::reflection::v1::ServerReflectionRequest;
using grpc::reflection::v1::ServerReflectionResponse;

}  // namespace

TEST_CASE("a client builds every service's types from reflection v1", "[api][reflection]") {
  const testing::Loopback loopback(nullptr);
  const auto stub = ServerReflection::NewStub(loopback.channel);
  grpc::ClientContext rpc;
  const auto stream = stub->ServerReflectionInfo(&rpc);
  const auto ask = [&](const ServerReflectionRequest& request) {
    ServerReflectionResponse response;
    CHECK(stream->Write(request));
    CHECK(stream->Read(&response));
    CHECK(response.original_request().SerializeAsString() == request.SerializeAsString());
    return response;
  };
  ServerReflectionRequest request;
  request.set_host("h");
  request.set_list_services("");
  const ServerReflectionResponse list = ask(request);
  CHECK(list.valid_host() == "h");
  std::set<std::string> names;
  for (const auto& service : list.list_services_response().service()) {
    CHECK(names.insert(service.name()).second);
    if (service.name() == "grpc.reflection.v1alpha.ServerReflection") {
      continue;  // the library's: its messages come to the pool when it is used
    }
    INFO(service.name());
    request.set_file_containing_symbol(service.name());
    const ServerReflectionResponse file = ask(request);
    google::protobuf::DescriptorPool pool;
    const auto& files = file.file_descriptor_response().file_descriptor_proto();
    REQUIRE(files.size() > 0);
    for (int i = files.size() - 1; i >= 0; --i) {  // imports lie behind
      google::protobuf::FileDescriptorProto message;
      REQUIRE(message.ParseFromString(files[i]));
      CHECK(pool.BuildFile(message) != nullptr);
    }
    const auto* service_type = pool.FindServiceByName(service.name());
    REQUIRE(service_type != nullptr);
    CHECK(service_type->method_count() > 0);
    request.set_file_by_filename(service_type->file()->name());
    CHECK(ask(request).file_descriptor_response().file_descriptor_proto_size() == files.size());
  }
  CHECK(names.count("dsa.v1.ChatService") == 1);
  CHECK(names.count("grpc.reflection.v1.ServerReflection") == 1);

  request.set_file_containing_symbol("dsa.v1.Nothing");
  CHECK(ask(request).error_response().error_code() == grpc::StatusCode::NOT_FOUND);
  request.mutable_file_containing_extension()->set_containing_type("dsa.v1.Message");
  CHECK(ask(request).error_response().error_code() == grpc::StatusCode::NOT_FOUND);
  request.set_all_extension_numbers_of_type("dsa.v1.Message");
  CHECK(ask(request).all_extension_numbers_response().base_type_name() == "dsa.v1.Message");
  request.clear_message_request();
  CHECK(ask(request).error_response().error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(stream->WritesDone());
  ServerReflectionResponse none;
  CHECK_FALSE(stream->Read(&none));
  CHECK(stream->Finish().ok());
}

TEST_CASE("a reflection request that is none, or is long, ends its call", "[api][reflection]") {
  const testing::Loopback loopback(nullptr);
  const char* method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
  CHECK(testing::CallRaw(loopback.channel, method, "\xff").error_code() ==
        grpc::StatusCode::INVALID_ARGUMENT);
  ServerReflectionRequest request;
  request.set_host(std::string(5000, 'h'));
  const grpc::Status status =
      testing::CallRaw(loopback.channel, method, request.SerializeAsString());
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(status.error_message().find("at most 4096") != std::string::npos);
}

}  // namespace dsa::reflection_test
