// The test server does what its tests rely on.
#include "tests/api/test_server.h"

#include "proto/completion.grpc.pb.h"
#include "tests/log_capture.h"

#include <thread>

#include <catch2/catch.hpp>
#include <grpcpp/channel.h>

namespace dsa::test_server_test {
namespace {

using testing::TestServer;

v1::CompletionRequest ThreeTokens() {
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_token_ids()->add_ids(8);
  request.mutable_stop()->set_max_tokens(3);
  request.set_request_id("three");
  return request;
}

grpc::Status Complete(TestServer& server, v1::CompletionResponse& response) {
  grpc::ClientContext rpc;
  return v1::CompletionService::NewStub(server.NewChannel())
      ->Complete(&rpc, ThreeTokens(), &response);
}

TEST_CASE("a held step ends when it is let pass, and tokens are as promised", "[test_server]") {
  testing::LogCapture log;
  TestServer server;
  server.steps().Hold();
  v1::CompletionResponse response;
  grpc::Status status;
  std::thread client([&] { status = Complete(server, response); });
  CHECK(server.steps().WaitForStep(1));
  server.steps().LetPass(1);
  CHECK(server.steps().WaitForStep(2));
  testing::Pause(std::chrono::milliseconds(20));
  CHECK(server.steps().begun() == 2);
  CHECK(server.engine().Load().steps == 1);
  server.steps().Resume();
  client.join();
  REQUIRE(status.ok());
  CHECK(response.token_ids_size() == 3);
  CHECK(response.token_ids(0) == 2);
  CHECK(response.token_ids(2) == 4);
  CHECK(response.text() == "cde");
  CHECK(server.BecomesQuiet());
  CHECK(testing::Eventually([&] { return log.Lines("three").size() == 1; }));
  CHECK(log.Lines("four").empty());
}

TEST_CASE("a step takes its time and a faulty row fails its request", "[test_server]") {
  TestServer server;
  v1::CompletionResponse response;
  server.steps().SetDuration(std::chrono::milliseconds(30));
  const auto start = std::chrono::steady_clock::now();
  CHECK(Complete(server, response).ok());
  CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(3 * 30));
  server.steps().SetDuration(std::chrono::microseconds(0));
  server.steps().FailRow(0);
  CHECK(Complete(server, response).error_code() == grpc::StatusCode::INTERNAL);
  server.steps().FailRow(-1);
  CHECK(Complete(server, response).ok());
}

TEST_CASE("a server that is destroyed while a step is held lets it end", "[test_server]") {
  auto server = std::make_unique<TestServer>();
  server->steps().Hold();
  v1::CompletionResponse response;
  std::thread client([&] { Complete(*server, response); });
  CHECK(server->steps().WaitForStep(1));
  server.reset();
  client.join();
}

}  // namespace
}  // namespace dsa::test_server_test
