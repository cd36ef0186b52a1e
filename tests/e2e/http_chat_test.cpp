// The small model over HTTP: what it says there is what it says over gRPC.
#include "common/json.h"
#include "proto/chat.grpc.pb.h"
#include "server/app.h"
#include "tests/http/raw_client.h"
#include "tests/paths.h"

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

namespace dsa {
namespace {

using testing::Exchange;
using testing::Post;
using testing::Reply;

constexpr const char* kQuestion = "What does abandon mean?";

ServerConfig HttpConfig() {
  ServerConfig config;
  config.model = testing::SourcePath("models/dsa-tiny");
  config.listen = "127.0.0.1:0";
  config.http_listen = "127.0.0.1:0";
  config.threads = 2;
  config.max_model_len = 512;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 128;
  return config;
}

std::string OverGrpc(std::int64_t port) {
  const auto stub = v1::ChatService::NewStub(
      grpc::CreateChannel(fmt::format("127.0.0.1:{}", port), grpc::InsecureChannelCredentials()));
  v1::ChatRequest request;
  request.add_messages()->set_role(v1::ROLE_USER);
  request.mutable_messages(0)->set_content(kQuestion);
  request.mutable_sampling()->set_temperature(0.0F);
  request.mutable_stop()->set_max_tokens(64);
  grpc::ClientContext rpc;
  v1::ChatResponse response;
  REQUIRE(stub->Chat(&rpc, request, &response).ok());
  return response.message().content();
}

TEST_CASE("a chat over HTTP says what it says over gRPC", "[e2e][http]") {
  auto started = App::Start(HttpConfig());
  REQUIRE(started.ok());
  const std::unique_ptr<App> app = std::move(started).value();
  const auto ask = [&](bool stream) {
    const Json body = {{"model", "dsa-tiny"},
                       {"messages", Json::array({{{"role", "user"}, {"content", kQuestion}}})},
                       {"temperature", 0},
                       {"max_tokens", 64},
                       {"stream", stream}};
    return Exchange(app->http_port(), Post("/v1/chat/completions", body.dump()));
  };
  const std::string expected = OverGrpc(app->port());
  CHECK(expected.find("forsake") != std::string::npos);
  const Reply whole = ask(false);
  REQUIRE(whole.status == 200);
  const Json answer = ParseJson(whole.body, "answer").value();
  CHECK(answer["choices"][0]["message"]["content"] == expected);
  CHECK(answer["choices"][0]["finish_reason"] == "stop");

  std::string streamed;
  const Reply stream = ask(true);
  for (std::size_t at = 0; (at = stream.body.find("data: {", at)) != std::string::npos;) {
    const std::size_t end = stream.body.find("\n\n", at);
    const Json event = ParseJson(stream.body.substr(at + 6, end - at - 6), "event").value();
    streamed += event["choices"][0]["delta"].value("content", "");
    at = end;
  }
  CHECK(streamed == expected);
  CHECK(stream.body.find("data: [DONE]") != std::string::npos);
  app->Drain();
}

}  // namespace
}  // namespace dsa
