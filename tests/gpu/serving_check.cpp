// What the whole server promises of its steps on CUDA: a steady one is one upload, one launch, one
// download and one wait; values that are not finite end the request that they belong to; kernels
// that never end end the process.
#include "kernels/forwarding_backend.h"
#include "kernels/ops/sample.h"
#include "proto/admin.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "tests/gpu/gpu_checks.h"
#include "tests/gpu/hanging_backend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

namespace dsa {
namespace {

struct Answer {
  std::int64_t tokens = 0;
  grpc::Status status;
};

Answer Ask(const testing::GpuServer& server, std::size_t first, std::int64_t tokens) {
  v1::CompletionRequest request;
  for (const TokenId id : testing::TextIds(first, 300)) {
    request.mutable_token_ids()->add_ids(Value(id));
  }
  request.mutable_sampling()->set_temperature(0.0F);
  request.mutable_stop()->set_max_tokens(tokens);
  request.mutable_stop()->set_ignore_eos(true);
  const auto stub = v1::CompletionService::NewStub(server.channel);
  grpc::ClientContext rpc;
  const auto reader = stub->CompleteStream(&rpc, request);
  Answer answer;
  for (v1::CompletionStreamResponse part; reader->Read(&part);) {
    answer.tokens += part.token_ids_size();
  }
  answer.status = reader->Finish();
  return answer;
}

std::vector<Answer> AskTogether(const testing::GpuServer& server, std::size_t streams,
                                std::int64_t tokens) {
  std::vector<Answer> answers(streams);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < streams; ++i) {
    threads.emplace_back([&, i] { answers[i] = Ask(server, 1000 * i, tokens); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return answers;
}

std::int64_t Steps(const testing::GpuServer& server) {
  const auto stub = v1::AdminService::NewStub(server.channel);
  v1::Load load;
  grpc::ClientContext rpc;
  REQUIRE(stub->GetLoad(&rpc, v1::GetLoadRequest(), &load).ok());
  return load.steps();
}

// Counts what a step asks of the device.
class Counting final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  Result<DeviceBuffer> Allocate(std::size_t bytes) override {
    ++others;
    return ForwardingBackend::Allocate(bytes);
  }
  Result<HostBuffer> AllocateHost(std::size_t bytes) override {
    ++others;
    return ForwardingBackend::AllocateHost(bytes);
  }
  void CopyToDevice(void* target, const void* source, std::size_t bytes) override {
    ++others;
    ForwardingBackend::CopyToDevice(target, source, bytes);
  }
  void CopyToHost(void* target, const void* source, std::size_t bytes) override {
    ++others;
    ForwardingBackend::CopyToHost(target, source, bytes);
  }
  void Synchronize() override {
    ++others;
    ForwardingBackend::Synchronize();
  }
  void Record(GraphId graph, const std::function<void()>& body) override {
    ++others;
    ForwardingBackend::Record(graph, body);
  }
  void Upload(void* target, const HostBuffer& source, std::size_t offset,
              std::size_t bytes) override {
    ++uploads;
    ForwardingBackend::Upload(target, source, offset, bytes);
  }
  void Replay(GraphId graph) override {
    ++launches;
    ForwardingBackend::Replay(graph);
    if (gaps_us.size() < gaps_us.capacity()) {
      gaps_us.push_back((testing::Now() - seen_) * kUsPerSecond);
    }
  }
  void Download(const HostBuffer& target, std::size_t offset, const void* source,
                std::size_t bytes) override {
    ++downloads;
    ForwardingBackend::Download(target, offset, source, bytes);
  }
  void WaitFor(int event) override {
    ++waits;
    ForwardingBackend::WaitFor(event);
    seen_ = testing::Now();
  }

  std::atomic<std::int64_t> uploads = 0;
  std::atomic<std::int64_t> launches = 0;
  std::atomic<std::int64_t> downloads = 0;
  std::atomic<std::int64_t> waits = 0;
  std::atomic<std::int64_t> others = 0;
  // From a step's result seen to the next graph launched.  Read while no request is live.
  std::vector<double> gaps_us;

 private:
  static constexpr double kUsPerSecond = 1e6;
  double seen_ = 0;
};

// Makes the first logit of a step's first sampled row NaN, once it is told to.
class Poisoning final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void Sample(const SampleParams& params) override {
    if (params.rows.size == wanted_rows && is_armed.exchange(false)) {
      const float nan = std::numeric_limits<float>::quiet_NaN();
      std::int32_t row = 0;
      inner_.CopyToHost(&row, params.logit_rows.data, sizeof(row));
      inner_.Synchronize();
      inner_.CopyToDevice(const_cast<float*>(params.logits.Row(row)), &nan, sizeof(nan));
    }
    ForwardingBackend::Sample(params);
  }

  static constexpr std::int64_t wanted_rows = 4;
  std::atomic<bool> is_armed = false;
};

constexpr const char* kHangingCase = "[.hanging_gpu_server]";

}  // namespace

TEST_CASE("a steady step on CUDA is one upload, one launch, one download, one wait", "[serving]") {
  constexpr std::int64_t kTokens = 400;
  constexpr double kGapUsMax = 60;  // from a result seen to the next graph launched
  const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
  Counting counting(*cuda);
  counting.gaps_us.reserve(10'000);
  const testing::GpuServer server(counting, 4'000, 64);
  for (const std::size_t streams : {std::size_t{1}, std::size_t{64}}) {
    (void)AskTogether(server, streams, 8);
    counting.gaps_us.clear();
    const std::int64_t steps = Steps(server);
    const std::int64_t before[] = {counting.uploads, counting.launches, counting.downloads,
                                   counting.waits, counting.others};
    for (const Answer& answer : AskTogether(server, streams, kTokens)) {
      CHECK(answer.status.ok());
      CHECK(answer.tokens == kTokens);
    }
    const std::int64_t taken = Steps(server) - steps;
    const std::int64_t launches = counting.launches - before[1];
    fmt::print(
        "serving  {} streams: {} steps, {} of them graphs, {} uploads, {} downloads, {} "
        "waits, {} other copies, waits and allocations\n",
        streams, taken, launches, counting.uploads - before[0], counting.downloads - before[2],
        counting.waits - before[3], counting.others - before[4]);
    std::sort(counting.gaps_us.begin(), counting.gaps_us.end());
    const std::size_t gaps = counting.gaps_us.size();
    REQUIRE(gaps > 0);
    fmt::print(
        "serving  {} streams: {:.1f} us from a result seen to the next graph launched, p90 "
        "{:.1f}\n",
        streams, counting.gaps_us[gaps / 2], counting.gaps_us[gaps * 9 / 10]);
    CHECK(counting.gaps_us[gaps / 2] <= kGapUsMax);
    CHECK(counting.uploads - before[0] == taken);
    CHECK(counting.downloads - before[2] == taken);
    CHECK(counting.waits - before[3] == taken);
    CHECK(counting.others == before[4]);
    CHECK(launches <= taken);
    CHECK(launches >= kTokens - static_cast<std::int64_t>(2 * streams));  // the others: prompts
  }
}

TEST_CASE("a logit on CUDA that is not finite ends its request alone", "[serving]") {
  constexpr std::int64_t kTokens = 300;
  const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
  Poisoning poisoning(*cuda);
  ServerConfig config;  // not recorded: a graph would not ask whether to poison
  config.max_model_len = 4'000;
  config.max_num_seqs = 8;
  const testing::GpuServer server(poisoning, config);
  poisoning.is_armed = true;
  int failed = 0;
  for (const Answer& answer : AskTogether(server, Poisoning::wanted_rows, kTokens)) {
    if (answer.status.error_code() == grpc::StatusCode::INTERNAL) {
      ++failed;
      fmt::print("serving  {} tokens, then: {}\n", answer.tokens, answer.status.error_message());
      CHECK(answer.tokens < kTokens);
    } else {
      CHECK(answer.status.ok());
      CHECK(answer.tokens == kTokens);
    }
  }
  CHECK_FALSE(poisoning.is_armed);
  CHECK(failed == 1);
  const Answer after = Ask(server, 0, 20);
  CHECK(after.status.ok());
  CHECK(after.tokens == 20);
}

TEST_CASE("the server whose kernels never end", "[.hanging_gpu_server]") {
  ServerConfig config;
  config.device = "cuda";
  config.max_model_len = 512;
  config.max_num_seqs = 2;
  config.stall_timeout_s = 1;
  const testing::GpuServer server(testing::HangingBackend(), config);
  (void)Ask(server, 0, 200);
  while (true) {
    pause();
  }
}

TEST_CASE("kernels that never end end the process with 5", "[serving]") {
  constexpr int kStalled = 5;
  const double start = testing::Now();
  const pid_t child = fork();  // nothing but exec follows in the child
  if (child == 0) {
    execl("/proc/self/exe", "hanging_server", kHangingCase, nullptr);
    _exit(127);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  fmt::print("serving  a step that never ends: status {:x} after {:.1f} s\n", status,
             testing::Now() - start);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == kStalled);
}

}  // namespace dsa
