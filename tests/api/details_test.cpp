// Laws of what an error and every call say beside their messages: google.rpc's details, the
// instance; and of health, which knows every service.
#include "proto/admin.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "proto/google/rpc/status.pb.h"
#include "proto/health.grpc.pb.h"
#include "server/grpc/error_details.h"
#include "server/grpc/wire.h"
#include "tests/api/loopback.h"
#include "tokenizer/utf8.h"

#include <optional>

#include <catch2/catch.hpp>

namespace dsa::details_test {
namespace {

using testing::Loopback;

// The details of an error, of each type at most one.
struct Details {
  google::rpc::Status status;
  std::optional<google::rpc::ErrorInfo> info;
  std::optional<google::rpc::BadRequest> bad;
  std::optional<google::rpc::RetryInfo> retry;
};

template <typename Message>
void Take(const google::protobuf::Any& any, std::optional<Message>& message) {
  if (any.Is<Message>()) {
    CHECK_FALSE(message);
    CHECK(any.UnpackTo(&message.emplace()));
  }
}

Details Read(const std::string& bytes) {
  Details details;
  CHECK(details.status.ParseFromString(bytes));
  for (const google::protobuf::Any& any : details.status.details()) {
    CHECK(any.type_url().rfind("type.googleapis.com/google.rpc.", 0) == 0);
    Take(any, details.info);
    Take(any, details.bad);
    Take(any, details.retry);
  }
  return details;
}

std::string MetadataOf(const grpc::ClientContext& rpc, const grpc::Status& status) {
  const auto& metadata =
      status.ok() ? rpc.GetServerInitialMetadata() : rpc.GetServerTrailingMetadata();
  const auto found = metadata.find("x-dsa-instance");
  return found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
}

std::string InstanceOf(const Loopback& loopback) {
  const auto admin = v1::AdminService::NewStub(loopback.channel);
  grpc::ClientContext rpc;
  v1::ServerInfo info;
  const grpc::Status status = admin->GetServerInfo(&rpc, v1::GetServerInfoRequest(), &info);
  CHECK(status.ok());
  CHECK(MetadataOf(rpc, status) == info.instance());
  return info.instance();
}

}  // namespace

TEST_CASE("the details of an error follow from its code and its message", "[api][details]") {
  struct Case {
    Error error;
    const char* reason;
    const char* field;  // "": none
    const char* description;
    int retry_seconds;  // 0: none
  };
  const auto one = GENERATE(values<Case>({
      {InvalidArgument("stop[1]: 300 bytes"), "INVALID_VALUE", "stop[1]", "300 bytes", 0},
      {InvalidArgument("a.b_2: "), "INVALID_VALUE", "a.b_2", "", 0},
      {InvalidArgument("no field here"), "INVALID_VALUE", "", "", 0},
      {InvalidArgument("Two words: here"), "INVALID_VALUE", "", "", 0},
      {{ErrorCode::kUnimplemented, "n: not supported"},
       "UNSUPPORTED_VALUE",
       "n",
       "not supported",
       0},
      {{ErrorCode::kNotFound, "model: \"x\""}, "MODEL_NOT_FOUND", "model", "\"x\"", 0},
      {{ErrorCode::kAlreadyExists, "request_id: live"},
       "REQUEST_ID_IS_LIVE",
       "request_id",
       "live",
       0},
      {{ErrorCode::kFailedPrecondition, "model: no"}, "UNSUPPORTED_BY_MODEL", "", "", 0},
      {{ErrorCode::kResourceExhausted, "queue: full"}, "OVERLOADED", "", "", 1},
      {{ErrorCode::kUnavailable, "draining: x"}, "UNAVAILABLE", "", "", 1},
      {{ErrorCode::kDeadlineExceeded, "late: x"}, "DEADLINE_EXCEEDED", "", "", 0},
      {{ErrorCode::kCancelled, "left: x"}, "CANCELLED", "", "", 0},
      {{ErrorCode::kInternal, "bug: x"}, "INTERNAL_ERROR", "", "", 0},
  }));
  CAPTURE(one.error.message);
  const Details details = Read(ErrorDetails(7, one.error));
  CHECK(details.status.code() == 7);
  CHECK(details.status.message() == one.error.message);
  REQUIRE(details.info);
  CHECK(details.info->reason() == one.reason);
  CHECK(details.info->domain() == "dsa");
  REQUIRE(details.bad.has_value() == (one.field[0] != '\0'));
  if (details.bad) {
    REQUIRE(details.bad->field_violations_size() == 1);
    CHECK(details.bad->field_violations(0).field() == one.field);
    CHECK(details.bad->field_violations(0).description() == one.description);
    CHECK(details.bad->field_violations(0).reason() == one.reason);
  }
  REQUIRE(details.retry.has_value() == (one.retry_seconds > 0));
  if (details.retry) {
    CHECK(details.retry->retry_delay().seconds() == one.retry_seconds);
    CHECK(details.retry->retry_delay().nanos() == 0);
  }
}

TEST_CASE("an error's message is cut where a character ends", "[api][details]") {
  std::string message = "stop: ";
  while (message.size() < 2000) {
    message += "\xe2\x82\xac";
  }
  const grpc::Status status = ToGrpc(InvalidArgument(message));
  CHECK(status.error_message().size() <= 1026);
  CHECK(IsValidUtf8(status.error_message()));
  const Details details = Read(status.error_details());
  CHECK(details.status.message() == status.error_message());
  CHECK(details.status.code() == grpc::StatusCode::INVALID_ARGUMENT);
  // A client takes at most 8 KiB of metadata by default, base64 and percent signs included.
  CHECK(status.error_details().size() * 4 / 3 + status.error_message().size() * 3 < 7 * 1024);
}

TEST_CASE("details come with the errors of every kind of call", "[api][details]") {
  Loopback loopback(nullptr);
  const auto refused = [&](const char* method, const std::string& bytes) {
    grpc::ClientContext rpc;
    const grpc::Status status = testing::CallRaw(loopback.channel, method, bytes, rpc);
    CAPTURE(method, status.error_message());
    CHECK_FALSE(status.ok());
    const Details details = Read(status.error_details());
    CHECK(details.status.code() == status.error_code());
    CHECK(details.status.message() == status.error_message());
    CHECK(details.info);
    return details;
  };
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_sampling()->set_temperature(3);
  for (const char* method :
       {"/dsa.v1.CompletionService/Complete", "/dsa.v1.CompletionService/CompleteStream"}) {
    const Details details = refused(method, request.SerializeAsString());
    REQUIRE(details.bad);
    CHECK(details.bad->field_violations(0).field() == "sampling.temperature");
  }
  CHECK(refused("/dsa.v1.AdminService/Abort", "").bad->field_violations(0).field() == "request_id");
  grpc::health::v1::HealthCheckRequest unknown;
  unknown.set_service("x");
  CHECK(refused("/grpc.health.v1.Health/Check", unknown.SerializeAsString()).info->reason() ==
        "MODEL_NOT_FOUND");
  loopback.server->BeginDrain();
  CHECK(refused("/dsa.v1.CompletionService/Complete", "").retry->retry_delay().seconds() == 1);
}

TEST_CASE("every call says which server it reached", "[api][details]") {
  const Loopback first(nullptr);
  const Loopback second(nullptr);
  const std::string instance = InstanceOf(first);
  CHECK(instance.size() == 32);
  CHECK(InstanceOf(first) == instance);
  CHECK(InstanceOf(second) != instance);
  for (const char* method :
       {"/dsa.v1.CompletionService/Complete", "/dsa.v1.CompletionService/CompleteStream",
        "/dsa.v1.AdminService/Abort"}) {
    grpc::ClientContext rpc;
    const grpc::Status status = testing::CallRaw(first.channel, method, "", rpc);
    CAPTURE(method);
    CHECK_FALSE(status.ok());
    CHECK(MetadataOf(rpc, status) == instance);
    CHECK(rpc.GetServerInitialMetadata().empty());
  }
}

TEST_CASE("health knows every service that is registered", "[api][details]") {
  const Loopback loopback(nullptr);
  const auto health = grpc::health::v1::Health::NewStub(loopback.channel);
  for (const char* name : {"", "readiness", "liveness", "dsa.v1.ChatService",
                           "dsa.v1.CompletionService", "dsa.v1.TokenService", "dsa.v1.ModelService",
                           "dsa.v1.AdminService", "grpc.reflection.v1.ServerReflection"}) {
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(name);
    grpc::ClientContext rpc;
    grpc::health::v1::HealthCheckResponse response;
    CAPTURE(name);
    CHECK(health->Check(&rpc, request, &response).ok());
    CHECK(response.status() == grpc::health::v1::HealthCheckResponse::SERVING);
    grpc::ClientContext watching;
    const auto watch = health->Watch(&watching, request);
    CHECK(watch->Read(&response));
    CHECK(response.status() == grpc::health::v1::HealthCheckResponse::SERVING);
    watching.TryCancel();
  }
}

}  // namespace dsa::details_test
