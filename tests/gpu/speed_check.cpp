// Speeds of the small model through gRPC on the same host.  Printed, for people to compare; what
// fails is below what was asked of an H100 and a host of 16 cores.
#include "proto/completion.grpc.pb.h"
#include "tests/gpu/gpu_checks.h"

#include <algorithm>
#include <thread>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::size_t kPromptTokens = 200;
constexpr std::int64_t kAnswerTokens = 512;
constexpr double kOneStreamMin = 1'500;  // tokens a second
constexpr double kManyStreamsMin = 25'000;
constexpr double kFirstTokenSecondsMax = 0.160;  // behind 16,000 tokens

struct Timed {
  std::int64_t tokens = 0;
  double first_s = 0;  // from the request to the first token
  double total_s = 0;
};

Timed Stream(const std::shared_ptr<grpc::Channel>& channel, std::size_t first_token,
             std::size_t prompt_tokens, std::int64_t answer_tokens) {
  v1::CompletionRequest request;
  for (const TokenId id : testing::TextIds(first_token, prompt_tokens)) {
    request.mutable_token_ids()->add_ids(Value(id));
  }
  request.mutable_sampling()->set_temperature(0.0F);
  request.mutable_stop()->set_max_tokens(answer_tokens);
  request.mutable_stop()->set_ignore_eos(true);
  const auto stub = v1::CompletionService::NewStub(channel);
  grpc::ClientContext rpc;
  Timed timed;
  const double start = testing::Now();
  const auto reader = stub->CompleteStream(&rpc, request);
  for (v1::CompletionStreamResponse part; reader->Read(&part);) {
    if (timed.tokens == 0) {
      timed.first_s = testing::Now() - start;
    }
    timed.tokens += part.token_ids_size();
  }
  timed.total_s = testing::Now() - start;
  const grpc::Status status = reader->Finish();
  if (!status.ok()) {
    fmt::print("speed  failed: {}\n", status.error_message());
    timed.tokens = -1;
  }
  return timed;
}

// Streams at once, each with a prompt of its own; tokens a second of all.
double MeasureStreams(const testing::GpuServer& server, std::size_t streams, const char* name) {
  std::vector<Timed> timed(streams);
  std::vector<std::thread> threads;
  const double start = testing::Now();
  for (std::size_t i = 0; i < timed.size(); ++i) {
    threads.emplace_back([&timed, &server, i] {
      timed[i] = Stream(server.channel, 37 + i * 211, kPromptTokens, kAnswerTokens);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const double seconds = testing::Now() - start;
  std::int64_t tokens = 0;
  double first_max = 0;
  for (const Timed& one : timed) {
    CHECK(one.tokens == kAnswerTokens);
    tokens += one.tokens;
    first_max = std::max(first_max, one.first_s);
  }
  const double tokens_per_s = static_cast<double>(tokens) / seconds;
  fmt::print("speed  {}streams={:3}  {:8.0f} tokens/s  first token after {:.1f} ms at most\n", name,
             streams, tokens_per_s, first_max * 1e3);
  return tokens_per_s;
}

}  // namespace

TEST_CASE("speeds of the small model through gRPC", "[speed]") {
  const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
  const testing::GpuServer server(*cuda, 18'000, 64);
  (void)Stream(server.channel, 0, kPromptTokens, kAnswerTokens);  // warm
  CHECK(MeasureStreams(server, 1, "") >= kOneStreamMin);
  (void)MeasureStreams(server, 8, "");
  CHECK(MeasureStreams(server, 64, "") >= kManyStreamsMin);
  for (const std::size_t prompt : {std::size_t{4000}, std::size_t{16'000}}) {
    const Timed one = Stream(server.channel, 5003 + prompt, prompt, 16);
    CHECK(one.tokens == 16);
    fmt::print("speed  prompt={:6}  first token after {:.1f} ms\n", prompt, one.first_s * 1e3);
    CHECK(one.first_s <= kFirstTokenSecondsMax);
  }
}

// What the mode costs, beside the speeds above.
TEST_CASE("speeds with batch_invariant", "[speed]") {
  const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
  ServerConfig config;
  config.device = "cuda";
  config.max_model_len = 18'000;
  config.max_num_seqs = 64;
  config.batch_invariant = true;
  const testing::GpuServer server(*cuda, config);
  (void)Stream(server.channel, 0, kPromptTokens, kAnswerTokens);  // warm
  for (const std::size_t streams : {1, 64}) {
    (void)MeasureStreams(server, streams, "batch_invariant  ");
  }
}

}  // namespace dsa
