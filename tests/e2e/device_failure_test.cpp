// A device that fails while the server serves: every running stream ends UNAVAILABLE, nothing is
// answered after it, and the process is gone within 5 s with exit code 4.
#include "kernels/device_failure.h"

#include "proto/completion.grpc.pb.h"
#include "server/app.h"
#include "tests/e2e/failing_backend.h"
#include "tests/this_program.h"

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <sys/wait.h>
#include <unistd.h>

namespace dsa {
namespace {

constexpr const char* kServerCase = "[.failing_server]";
constexpr int kStreams = 4;
constexpr std::int64_t kAnswerTokens = 200;

// This program again, as the server; its standard output is a pipe.
class FailingServer final {
 public:
  FailingServer() {
    std::array<int, 2> ends{};
    REQUIRE(pipe(ends.data()) == 0);
    child_ = fork();  // nothing but exec follows in the child
    if (child_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      testing::BecomeHiddenCase(kServerCase);
    }
    close(ends[1]);
    output_ = fdopen(ends[0], "r");
  }
  ~FailingServer() {
    std::fclose(output_);
    if (child_ > 0) {
      kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
  }
  FailingServer(const FailingServer&) = delete;
  FailingServer& operator=(const FailingServer&) = delete;

  // What it says when it serves; 0 where it has ended before.
  int ReadPort() {
    std::array<char, 256> line{};
    int port = 0;
    while (port == 0 &&
           std::fgets(line.data(), static_cast<int>(line.size()), output_) != nullptr) {
      (void)std::sscanf(line.data(), "port %d", &port);
    }
    return port;
  }
  int WaitForExit() {
    int status = 0;
    waitpid(std::exchange(child_, -1), &status, 0);
    return testing::ExitCodeOf(status);
  }

 private:
  pid_t child_ = -1;
  FILE* output_ = nullptr;
};

struct EndedStream {
  grpc::Status status;
  std::int64_t tokens = 0;
  std::chrono::steady_clock::time_point at;
};

EndedStream StreamToTheEnd(int port, int number) {
  v1::CompletionRequest request;
  for (int i = 0; i < 5; ++i) {
    request.mutable_token_ids()->add_ids(10 + number * 5 + i);
  }
  request.mutable_sampling()->set_temperature(0.0F);
  request.mutable_stop()->set_max_tokens(kAnswerTokens);
  request.mutable_stop()->set_ignore_eos(true);
  const auto stub = v1::CompletionService::NewStub(
      grpc::CreateChannel(fmt::format("127.0.0.1:{}", port), grpc::InsecureChannelCredentials()));
  grpc::ClientContext rpc;
  const auto reader = stub->CompleteStream(&rpc, request);
  EndedStream ended;
  for (v1::CompletionStreamResponse part; reader->Read(&part);) {
    ended.tokens += part.token_ids_size();
  }
  ended.status = reader->Finish();
  ended.at = std::chrono::steady_clock::now();
  return ended;
}

}  // namespace

TEST_CASE("the server whose device fails", "[.failing_server]") {
  ServerConfig config;
  config.model = testing::FailingModel();
  config.listen = "127.0.0.1:0";
  config.max_model_len = 512;
  config.max_num_seqs = 2;  // the other streams wait
  config.max_num_batched_tokens = 64;
  const auto app = App::StartOn(testing::FailingBackend(), config);
  REQUIRE(app.ok());
  fmt::print("port {}\n", app.value()->port());
  std::fflush(stdout);
  while (true) {
    pause();
  }
}

TEST_CASE("a device that fails ends all streams and the process", "[e2e][faults]") {
  FailingServer server;
  const int port = server.ReadPort();
  REQUIRE(port > 0);
  std::vector<EndedStream> ended(kStreams);
  std::vector<std::thread> threads;
  for (int i = 0; i < kStreams; ++i) {
    threads.emplace_back(
        [&ended, port, i] { ended[static_cast<std::size_t>(i)] = StreamToTheEnd(port, i); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const int exit_code = server.WaitForExit();
  const auto gone = std::chrono::steady_clock::now();
  CHECK(exit_code == kDeviceFailedExitCode);
  std::int64_t tokens = 0;
  for (const EndedStream& one : ended) {
    CHECK(one.status.error_code() == grpc::StatusCode::UNAVAILABLE);
    CHECK(one.status.error_message() == "the device failed");
    CHECK(one.tokens < kAnswerTokens);
    CHECK(gone - one.at < std::chrono::seconds(5));
    tokens += one.tokens;
  }
  CHECK(tokens > 0);
  CHECK(tokens <= 2 * testing::kStepsBeforeFailure);
}

}  // namespace dsa
