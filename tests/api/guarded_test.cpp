// What honest clients do over HTTP/2 passes the guard in front of gRPC as if there were none: large
// prompts, silence, thousands of calls, cancels, trailers, watches, reflection, a drain.
#include "proto/admin.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "proto/reflection.grpc.pb.h"
#include "tests/abuse/raw_http2.h"
#include "tests/api/test_server.h"
#include "tests/moved_clock.h"
#include "tests/paths.h"
#include "tests/sanitized.h"

#include <atomic>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <grpcpp/channel.h>

namespace dsa::guarded_test {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using testing::Eventually;
using testing::MovedClock;
using testing::TestServer;
using testing::TestServerOptions;

v1::CompletionRequest Tokens(int max_tokens) {
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_token_ids()->add_ids(8);
  request.mutable_stop()->set_max_tokens(max_tokens);
  return request;
}

bool HasLoad(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext rpc;
  v1::Load load;
  return v1::AdminService::NewStub(channel)->GetLoad(&rpc, {}, &load).ok();
}

TEST_CASE("five silent minutes end neither a stream nor a connection", "[api][guard]") {
  MovedClock clock;
  TestServerOptions options;
  options.clock = &clock;
  TestServer server(options);
  const auto busy = server.NewChannel();
  const auto idle = server.NewChannel();
  REQUIRE(HasLoad(idle));
  server.steps().Hold();
  grpc::ClientContext rpc;
  const auto reader = v1::CompletionService::NewStub(busy)->CompleteStream(&rpc, Tokens(3));
  REQUIRE(server.steps().WaitForStep(1));
  // One that has opened HTTP/2 and acknowledges nothing, so that the clock is seen to be the
  // guard's.
  testing::RawConnection silent(server.port());
  REQUIRE(silent.Send(testing::ClientPreface()));
  REQUIRE(Eventually([&] { return server.server().acceptor().open() == 3; }));
  for (int minute = 0; minute < 5; ++minute) {
    clock.Move(std::chrono::minutes(1));
    CHECK(HasLoad(server.NewChannel()));  // the guard has seen the time
  }
  CHECK(Eventually([&] {
    silent.ReadFor(1);
    return silent.ended();
  }));
  CHECK(silent.go_away_code() == 11);  // ENHANCE_YOUR_CALM
  CHECK(server.server().acceptor().told_off() == 1);
  CHECK(busy->GetState(false) == GRPC_CHANNEL_READY);
  CHECK(idle->GetState(false) == GRPC_CHANNEL_READY);
  CHECK(HasLoad(idle));
  server.steps().Resume();
  int ids = 0;
  for (v1::CompletionStreamResponse part; reader->Read(&part);) {
    ids += part.token_ids_size();
  }
  CHECK(reader->Finish().ok());
  CHECK(ids == 3);
  CHECK(HasLoad(busy));
}

TEST_CASE("a prompt of 16 MB is answered", "[api][guard]") {
  // A token of DeepSeek's tokenizer has at most 128 bytes, these are of spaces.
  constexpr std::size_t kTokenBytes = 128;
  constexpr std::size_t kTokens = testing::kSanitized ? 4'000 : 131'070;
  const auto tokenizer = std::move(Tokenizer::Load(testing::SourcePath(
                                       "tests/fixtures/deepseek_v3_tokenizer/tokenizer.json")))
                             .value();
  TestServerOptions options;
  options.tokenizer = tokenizer.get();
  options.engine.scheduler.context_tokens_max = 140'000;
  options.engine.scheduler.sequences_max = 1;
  options.engine.blocks = 140'000 / options.engine.tokens_per_block + 1;
  TestServer server(options);
  v1::CompletionRequest request;
  request.set_text(std::string(kTokenBytes * kTokens, ' '));
  request.mutable_stop()->set_max_tokens(1);
  const auto channel = server.NewChannel();
  grpc::ClientContext rpc;
  v1::CompletionResponse response;
  const grpc::Status status =
      v1::CompletionService::NewStub(channel)->Complete(&rpc, request, &response);
  CHECK(status.error_message().empty());
  CHECK(response.usage().prompt_tokens() == kTokens);
  CHECK(response.usage().completion_tokens() == 1);
  // A token more than the context is refused for its tokens, not for its bytes.
  options.engine.scheduler.context_tokens_max = kTokens;
  TestServer smaller(options);
  grpc::ClientContext again;
  const grpc::Status refused =
      v1::CompletionService::NewStub(smaller.NewChannel())->Complete(&again, request, &response);
  CHECK(refused.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(refused.error_message() ==
        fmt::format("prompt: more than {0} tokens, at most {0}: the context has {1} and an answer "
                    "needs 1",
                    kTokens - 1, kTokens));
  CHECK(server.server().acceptor().told_off() == 0);
  CHECK(smaller.server().acceptor().told_off() == 0);
}

TEST_CASE("10,000 calls go over one connection", "[api][guard]") {
  constexpr int kThreads = 4;
  constexpr int kRounds = (testing::kSanitized ? 1'000 : 10'000) / kThreads / 5;
  TestServer server;
  const auto channel = server.NewChannel();
  std::atomic<int> answered{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < kThreads; ++i) {
    clients.emplace_back([&] {
      const auto completion = v1::CompletionService::NewStub(channel);
      const auto health = Health::NewStub(channel);
      for (int round = 0; round < kRounds; ++round) {
        for (int tokens = 1; tokens <= 3; ++tokens) {
          grpc::ClientContext rpc;
          v1::CompletionResponse response;
          answered += completion->Complete(&rpc, Tokens(tokens), &response).ok() ? 1 : 0;
        }
        grpc::ClientContext rpc;
        HealthCheckResponse response;
        answered += health->Check(&rpc, HealthCheckRequest(), &response).ok() ? 1 : 0;
        answered += HasLoad(channel) ? 1 : 0;
      }
    });
  }
  for (std::thread& client : clients) {
    client.join();
  }
  CHECK(answered == kThreads * kRounds * 5);
  CHECK(channel->GetState(false) == GRPC_CHANNEL_READY);
  CHECK(server.server().acceptor().open() == 1);
  CHECK(server.server().acceptor().told_off() == 0);
}

// In steps, so that no machine is too slow for it: bench/results has the time.
TEST_CASE("a cancel is seen within a second of steps of 20 ms", "[api][guard]") {
  constexpr std::int64_t kStepsMax = 50;
  TestServer server;
  const auto channel = server.NewChannel();
  const auto stub = v1::CompletionService::NewStub(channel);
  for (int round = 0; round < 20; ++round) {
    CAPTURE(round);
    server.steps().Hold();
    const std::int64_t before = server.steps().begun();
    grpc::ClientContext rpc;
    const auto reader = stub->CompleteStream(&rpc, Tokens(4000));
    REQUIRE(server.steps().WaitForStep(before + 1));
    rpc.TryCancel();
    std::int64_t passed = 0;
    while (passed <= kStepsMax && server.engine().Load().blocks_referenced > 0) {
      REQUIRE(HasLoad(channel));  // behind the cancel, on the same connection
      server.steps().LetPass(1);
      ++passed;
      // The next step begins, or the last has freed what the stream held.
      REQUIRE(Eventually([&] {
        return server.steps().begun() > before + passed ||
               server.engine().Load().blocks_referenced == 0;
      }));
    }
    CHECK(passed <= kStepsMax);
    CHECK(reader->Finish().error_code() == grpc::StatusCode::CANCELLED);
    server.steps().Resume();
    REQUIRE(server.BecomesQuiet());
  }
  CHECK(server.server().acceptor().told_off() == 0);
}

TEST_CASE("trailers, watches, reflection and a drain come through", "[api][guard]") {
  TestServer server;
  const auto channel = server.NewChannel();
  grpc::ClientContext watching;
  const auto watch = Health::NewStub(channel)->Watch(&watching, HealthCheckRequest());
  HealthCheckResponse health;
  REQUIRE(watch->Read(&health));
  CHECK(health.status() == HealthCheckResponse::SERVING);
  {
    grpc::ClientContext rpc;
    const auto stream =
        grpc::reflection::v1::ServerReflection::NewStub(channel)->ServerReflectionInfo(&rpc);
    grpc::reflection::v1::ServerReflectionRequest request;
    request.set_list_services("");
    grpc::reflection::v1::ServerReflectionResponse response;
    CHECK(stream->Write(request));
    CHECK(stream->Read(&response));
    CHECK(response.list_services_response().service_size() > 5);
    stream->WritesDone();
    CHECK(stream->Finish().ok());
  }
  const auto stub = v1::CompletionService::NewStub(channel);
  {
    grpc::ClientContext rpc;
    v1::CompletionResponse response;
    CHECK(stub->Complete(&rpc, Tokens(-1), &response).error_code() ==
          grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(rpc.GetServerTrailingMetadata().count("grpc-status-details-bin") == 1);
  }
  // A stream whose values are not finite after its first token: header, message and trailers.
  server.steps().Hold();
  grpc::ClientContext failing;
  failing.AddMetadata("x-request-id", "fails");
  const auto failed = stub->CompleteStream(&failing, Tokens(10));
  REQUIRE(server.steps().WaitForStep(1));
  server.steps().LetPass(1);
  v1::CompletionStreamResponse part;
  REQUIRE(failed->Read(&part));
  server.steps().FailRow(0);
  server.steps().LetPass(1);
  while (failed->Read(&part)) {
  }
  CHECK(failed->Finish().error_code() == grpc::StatusCode::INTERNAL);
  CHECK(failing.GetServerInitialMetadata().count("x-request-id") == 1);
  CHECK(failing.GetServerTrailingMetadata().count("grpc-status-details-bin") == 1);
  REQUIRE(Eventually([&] { return server.engine().Load().running == 0; }));
  server.steps().FailRow(-1);
  // A drain is heard of, lets what runs finish, and ends what watches.
  const std::int64_t before = server.steps().begun();
  grpc::ClientContext rpc;
  const auto reader = stub->CompleteStream(&rpc, Tokens(5));
  REQUIRE(server.steps().WaitForStep(before + 1));
  std::thread drain([&] { server.Drain(60'000'000); });
  REQUIRE(watch->Read(&health));
  CHECK(health.status() == HealthCheckResponse::NOT_SERVING);
  server.steps().Resume();
  int ids = 0;
  for (; reader->Read(&part);) {
    ids += part.token_ids_size();
  }
  CHECK(reader->Finish().ok());
  CHECK(ids == 5);
  while (watch->Read(&health)) {
  }
  (void)watch->Finish();
  drain.join();
  CHECK(server.server().acceptor().told_off() == 0);
}

}  // namespace
}  // namespace dsa::guarded_test
