// Large texts beside everything else.
#include "proto/completion.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "proto/token.grpc.pb.h"
#include "tests/api/test_server.h"
#include "tests/log_capture.h"
#include "tests/paths.h"

#include <algorithm>
#include <future>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <grpcpp/channel.h>

namespace dsa {
namespace {

using std::chrono::milliseconds;
using testing::Eventually;
using testing::LogCapture;
using testing::TestServer;
using testing::TestServerOptions;

#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kLargeBytes = std::size_t{2} << 20;
#else
constexpr std::size_t kLargeBytes = (std::size_t{16} << 20) - 100;
#endif

const Tokenizer& TestTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      std::move(Tokenizer::Load(
                    testing::SourcePath("tests/fixtures/deepseek_v3_tokenizer/tokenizer.json")))
          .value();
  return *tokenizer;
}

TestServerOptions WithText() {
  TestServerOptions options;
  options.tokenizer = &TestTokenizer();
  return options;
}

std::string Words(std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) {
    text += "a few words, and 12 more; ";
  }
  text.resize(bytes);
  return text;
}

// Times of `count` health checks, ascending.
std::vector<milliseconds> AskHealth(const TestServer& server, int count) {
  const auto stub = grpc::health::v1::Health::NewStub(server.NewChannel());
  std::vector<milliseconds> times;
  for (int i = 0; i < count; ++i) {
    grpc::ClientContext rpc;
    grpc::health::v1::HealthCheckResponse response;
    const auto start = std::chrono::steady_clock::now();
    CHECK(stub->Check(&rpc, grpc::health::v1::HealthCheckRequest(), &response).ok());
    times.push_back(
        std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - start));
    testing::Pause(milliseconds(5));
  }
  std::sort(times.begin(), times.end());
  return times;
}

// Calls that count the tokens of a large text, until they are cancelled.
class LargeCalls final {
 public:
  LargeCalls(const TestServer& server, int count) : rpcs_(count), codes_(count) {
    request_.set_text(Words(kLargeBytes));
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([&, i] {
        v1::CountTokensResponse response;
        const auto stub = v1::TokenService::NewStub(server.NewChannel());
        codes_[i] = stub->CountTokens(&rpcs_[i], request_, &response).error_code();
      });
    }
  }
  ~LargeCalls() { Cancel(); }
  LargeCalls(const LargeCalls&) = delete;
  LargeCalls& operator=(const LargeCalls&) = delete;

  void Cancel() {
    for (grpc::ClientContext& rpc : rpcs_) {
      rpc.TryCancel();
    }
    for (std::thread& thread : threads_) {
      thread.join();
    }
    threads_.clear();
  }
  const std::vector<grpc::StatusCode>& codes() const { return codes_; }

 private:
  v1::CountTokensRequest request_;
  std::vector<grpc::ClientContext> rpcs_;
  std::vector<grpc::StatusCode> codes_;
  std::vector<std::thread> threads_;
};

TEST_CASE("eight texts as large as may be delay neither health nor a small request", "[load]") {
  const LogCapture log;
  TestServer server(WithText());
  LargeCalls large(server, 8);
  const std::vector<milliseconds> times = AskHealth(server, 200);
  const milliseconds p99 = times[times.size() * 99 / 100];
  INFO("health p99 " << p99.count() << " ms, most " << times.back().count() << " ms");
  CHECK(p99 <= milliseconds(250));  // 50 where the clients have a processor of their own
  // A prompt that is long, but not that long, has a thread of its own.
  v1::CompletionRequest request;
  request.set_text(Words(17 << 10));
  request.mutable_stop()->set_max_tokens(1);
  grpc::ClientContext rpc;
  v1::CompletionResponse response;
  const auto start = std::chrono::steady_clock::now();
  const grpc::Status status =
      v1::CompletionService::NewStub(server.NewChannel())->Complete(&rpc, request, &response);
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(status.error_message().rfind("prompt: more than 4095 tokens, at most 4095", 0) == 0);
  CHECK(std::chrono::steady_clock::now() - start < milliseconds(1000));
  large.Cancel();
  // What was cancelled before its turn is not worked on.
  CHECK(Eventually([&] { return log.Lines("CountTokens").size() == 8; }));
}

TEST_CASE("a prompt far beyond the context costs no more than the context", "[load]") {
  TestServer server(WithText());
  v1::CompletionRequest request;
  request.set_text(Words(kLargeBytes));
  grpc::ClientContext rpc;
  v1::CompletionResponse response;
  const auto start = std::chrono::steady_clock::now();
  const grpc::Status status =
      v1::CompletionService::NewStub(server.NewChannel())->Complete(&rpc, request, &response);
  CHECK(status.error_message() ==
        "prompt: more than 4095 tokens, at most 4095: the context has 4096 and an answer needs 1");
  CHECK(std::chrono::steady_clock::now() - start < milliseconds(1000));
}

#ifndef __SANITIZE_ADDRESS__  // a million tokens, five times
TEST_CASE("tokens of a text or a conversation are counted up to a limit and no further", "[load]") {
  TestServer server(WithText());
  server.context().model.chat_format = ChatFormat::kV32;
  const auto stub = v1::TokenService::NewStub(server.NewChannel());
  constexpr std::size_t kMax = std::size_t{1} << 20;
  const auto count = [&](const std::string& text) {
    grpc::ClientContext rpc;
    v1::CountTokensRequest request;
    request.set_text(text);
    v1::CountTokensResponse response;
    const grpc::Status status = stub->CountTokens(&rpc, request, &response);
    return status.ok() ? std::to_string(response.tokens()) : status.error_message();
  };
  REQUIRE(TestTokenizer().Encode("5\n5\n5").size() == 5);
  std::string text;
  while (text.size() < kMax) {
    text += "5\n";
  }
  CHECK(count(text) == std::to_string(kMax));
  text += "5";
  CHECK(count(text) == "text: more than 1048576 tokens, at most 1048576");
  {
    grpc::ClientContext rpc;
    v1::TokenizeRequest request;
    request.set_text(text);
    request.set_parse_special(true);
    v1::TokenizeResponse response;
    CHECK(stub->Tokenize(&rpc, request, &response).error_message() ==
          "text: more than 1048576 tokens, at most 1048576");
  }
  v1::RenderRequest request;
  v1::Message& message = *request.mutable_conversation()->add_messages();
  message.set_role(v1::ROLE_USER);
  message.set_content(text);
  grpc::ClientContext rpc;
  v1::RenderResponse response;
  CHECK(stub->Render(&rpc, request, &response).error_message() ==
        "conversation: more than 1048576 tokens, at most 1048576");
  v1::CountTokensRequest counting;
  *counting.mutable_conversation() = request.conversation();
  grpc::ClientContext counting_rpc;
  v1::CountTokensResponse counted;
  CHECK(stub->CountTokens(&counting_rpc, counting, &counted).error_message() ==
        "conversation: more than 1048576 tokens, at most 1048576");
}
#endif

TEST_CASE("more large texts than there are places are refused, and the rest answered", "[load]") {
  WorkQueue queue(2);
  std::promise<void> go_on;
  const std::shared_future<void> wait = go_on.get_future().share();
  std::promise<void> begun;
  std::vector<int> done;
  CHECK(queue.TryPush([&] {
    begun.set_value();
    wait.wait();
  }));
  begun.get_future().wait();
  CHECK(queue.TryPush([&] { done.push_back(1); }));
  CHECK(queue.TryPush([&] { done.push_back(2); }));
  CHECK_FALSE(queue.TryPush([&] { done.push_back(3); }));
  go_on.set_value();
  std::promise<void> last;
  CHECK(Eventually([&] { return queue.TryPush([&] { last.set_value(); }); }));
  last.get_future().wait();
  CHECK(done == std::vector<int>{1, 2});

  TextWorkers workers;
  const std::thread::id here = std::this_thread::get_id();
  std::promise<std::thread::id> there;
  CHECK(workers.Do(TextWorkers::kShortBytesMax, [&] { CHECK(std::this_thread::get_id() == here); })
            .ok());
  CHECK(
      workers
          .Do(TextWorkers::kShortBytesMax + 1, [&] { there.set_value(std::this_thread::get_id()); })
          .ok());
  CHECK(there.get_future().get() != here);
  // A full queue of large ones leaves the others alone.
  std::promise<void> release;
  const std::shared_future<void> held = release.get_future().share();
  int taken = 0;
  Status status;
  while (taken < 1000) {
    status = workers.Do(TextWorkers::kMediumBytesMax + 1, [held] { held.wait(); });
    if (!status.ok()) {
      break;
    }
    ++taken;
  }
  CHECK(taken >= 16);
  CHECK(taken <= 17);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code == ErrorCode::kResourceExhausted);
  CHECK(status.error().message ==
        "too much text: 16 requests of this size wait to be read, at most 16");
  std::promise<void> medium;
  CHECK(workers.Do(TextWorkers::kMediumBytesMax, [&] { medium.set_value(); }).ok());
  medium.get_future().wait();
  release.set_value();
}

TEST_CASE("a health check is small", "[load]") {
  TestServer server;
  const auto stub = grpc::health::v1::Health::NewStub(server.NewChannel());
  grpc::ClientContext rpc;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(std::string(5000, 'x'));
  grpc::health::v1::HealthCheckResponse response;
  CHECK(stub->Check(&rpc, request, &response).error_code() == grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace dsa
