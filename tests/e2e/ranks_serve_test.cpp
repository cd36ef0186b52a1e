// A server whose model is split over ranks: it answers as one rank does, and a rank that fails, or
// says nothing, ends the whole process with the codes of a device that fails or hangs.
#include "kernels/comm/collectives.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/device_failure.h"
#include "kernels/forwarding_backend.h"
#include "kernels/ops/rms_norm.h"
#include "model/random_checkpoint.h"
#include "model/weight_loader.h"
#include "server/app.h"
#include "server/engine/rank_group.h"
#include "server/sizing.h"
#include "tests/e2e/process.h"
#include "tests/e2e/tiny_model.h"
#include "tests/temporary_folder.h"

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

namespace dsa {
namespace {

class RankSink final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& delta) override {
    for (const auto& token : delta.tokens) {
      ids_.push_back(static_cast<std::int32_t>(token.id));
    }
    if (delta.finish) {
      done_.set_value(delta.error ? std::vector<std::int32_t>{-1} : ids_);
    }
  }
  std::vector<std::int32_t> Wait() { return done_.get_future().get(); }

 private:
  std::vector<std::int32_t> ids_;
  std::promise<std::vector<std::int32_t>> done_;
};

ServerConfig RankConfig(const std::string& model, std::int64_t ranks) {
  ServerConfig config;
  config.model = model;
  config.listen = "127.0.0.1:0";
  config.threads = 2;
  config.tensor_parallel_size = ranks;
  config.max_model_len = 512;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 64;
  return config;
}

// Of prompts up to three times top-k, half of them drawn.
std::vector<std::vector<std::int32_t>> RankAnswers(const ServerConfig& config) {
  const auto app = App::Start(config);
  REQUIRE(app.ok());
  std::vector<std::shared_ptr<RankSink>> sinks;
  for (int number = 0; number < 4; ++number) {
    Request request;
    for (int i = 0; i < 5 + number * 60; ++i) {
      request.prompt.push_back(TokenId{(number * 131 + i * 17) % 500});
    }
    request.sampling.temperature = number % 2 == 0 ? 0.0F : 0.9F;
    request.sampling.seed = static_cast<std::uint64_t>(number);
    request.stop.max_tokens = 12;
    request.stop.ignore_end = true;
    sinks.push_back(std::make_shared<RankSink>());
    REQUIRE(app.value()->engine().Submit(std::move(request), sinks.back()).ok());
  }
  std::vector<std::vector<std::int32_t>> answers;
  for (const std::shared_ptr<RankSink>& sink : sinks) {
    answers.push_back(sink->Wait());
  }
  return answers;
}

enum class Ends { kFailsInNorm, kThrows, kFailsInSample, kSilentInReduce, kSilentAtStart };

// After the warm-up, in the middle of a step.
class EndingRank final : public ForwardingBackend {
 public:
  EndingRank(Backend& inner, int rank, Ends ends)
      : ForwardingBackend(inner), rank_(rank), ends_(ends) {}

  void RmsNorm(const RmsNormParams& params) override {
    if (rank_ == 1 && ends_ == Ends::kFailsInNorm && ++calls_ > kCalls) {
      DeviceFailed("planted");
    }
    if (rank_ == 1 && ends_ == Ends::kThrows && ++calls_ > kCalls) {
      std::vector<char>().reserve(std::vector<char>().max_size() + 1);
    }
    inner_.RmsNorm(params);
  }
  void Sample(const SampleParams& params) override {
    if (rank_ == 0 && ends_ == Ends::kFailsInSample && ++calls_ > kSamples) {
      DeviceFailed("planted");
    }
    inner_.Sample(params);
  }
  Status ReserveScratch(const ScratchLimits& limits) override {
    while (rank_ == 1 && ends_ == Ends::kSilentAtStart) {
      pause();
    }
    return inner_.ReserveScratch(limits);
  }
  void AllReduce(const AllReduceParams& params) override {
    while (rank_ == 1 && ends_ == Ends::kSilentInReduce && ++calls_ > kCalls) {
      pause();
    }
    inner_.AllReduce(params);
  }

 private:
  static constexpr int kCalls = 200;
  static constexpr int kSamples = 10;
  const int rank_;
  const Ends ends_;
  int calls_ = 0;
};

struct EndedServer {
  int exit_code;
  std::string err;
};

// This program again, as the server whose rank ends so.
EndedServer RunEndingServer(Ends ends) {
  std::array<int, 2> pipe_ends{};
  REQUIRE(pipe(pipe_ends.data()) == 0);
  const std::string tag = fmt::format("[.ending_rank_{}]", static_cast<int>(ends));
  const pid_t child = fork();  // nothing but exec follows in the child
  if (child == 0) {
    dup2(pipe_ends[1], STDERR_FILENO);
    execl("/proc/self/exe", "ending_rank", tag.c_str(), nullptr);
    _exit(127);
  }
  close(pipe_ends[1]);
  EndedServer ended{.exit_code = -1, .err = {}};
  std::array<char, 4096> bytes{};
  for (ssize_t count = 0; (count = read(pipe_ends[0], bytes.data(), bytes.size())) > 0;) {
    ended.err.append(bytes.data(), static_cast<std::size_t>(count));
  }
  close(pipe_ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  ended.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
  return ended;
}

void ServeUntilARankEnds(Ends ends) {
  ThreadGroup group(2);
  CpuBackend first(1, CpuSeat{.group = &group, .rank = 0});
  CpuBackend second(1, CpuSeat{.group = &group, .rank = 1});
  EndingRank first_ends(first, 0, ends);
  EndingRank second_ends(second, 1, ends);
  ServerConfig config = RankConfig(testing::TinyModel(), 2);
  config.stall_timeout_s = 1;
  const auto app = App::StartOn({.group = &group, .backends = {&first_ends, &second_ends}}, config);
  REQUIRE(app.ok());
  Request request;
  request.prompt = {TokenId{1}, TokenId{2}};
  request.stop.max_tokens = 400;
  request.stop.ignore_end = true;
  const auto sink = std::make_shared<RankSink>();
  REQUIRE(app.value()->engine().Submit(request, sink).ok());
  const std::vector<std::int32_t> ids = sink->Wait();
  std::fprintf(stderr, ids.back() == -1 ? "unavailable\n" : "answered\n");
  while (true) {
    pause();
  }
}

void StartWithoutARank() {
  ThreadGroup group(2);
  CpuBackend first(1, CpuSeat{.group = &group, .rank = 0});
  CpuBackend second(1, CpuSeat{.group = &group, .rank = 1});
  EndingRank silent(second, 1, Ends::kSilentAtStart);
  std::vector<Backend*> backends = {&first, &silent};
  const Checkpoint checkpoint = Checkpoint::Open(testing::TinyModel()).value();
  NoProgress progress;
  const auto weights = LoadRankWeights(checkpoint, {.ranks = 2}, backends, progress);
  REQUIRE(weights.ok());
  ModelExecutorConfig config =
      PlanExecutor(RankConfig(testing::TinyModel(), 2), checkpoint.config()).value();
  config.blocks = 8;
  const std::vector<RankGroup::Rank> ranks = {
      {.backend = first, .weights = weights.value()[0].weights},
      {.backend = silent, .weights = weights.value()[1].weights}};
  const auto made =
      RankGroup::Create(group, ranks, checkpoint.config(), config, std::chrono::milliseconds(100));
  std::fprintf(stderr, "answered %d\n", made.ok() ? 1 : 0);
}

}  // namespace

TEST_CASE("a server of two or four ranks answers as one of one", "[e2e][ranks]") {
  const testing::TemporaryFolder folder;
  RandomCheckpointOptions options;
  options.type = CheckpointType::kF32;
  options.layers = 3;
  options.expert_width = 256;
  REQUIRE(WriteRandomCheckpoint(options, folder.path()).ok());
  const auto whole = RankAnswers(RankConfig(folder.path(), 1));
  CHECK(whole[3].size() == 12);
  CHECK(RankAnswers(RankConfig(folder.path(), 2)) == whole);
  ServerConfig four = RankConfig(folder.path(), 4);
  four.expert_parallel = true;
  CHECK(RankAnswers(four) == whole);
}

TEST_CASE("a server of two or four data ranks answers as one of one", "[e2e][ranks]") {
  const testing::TemporaryFolder folder;
  RandomCheckpointOptions options;
  options.type = CheckpointType::kF32;
  options.layers = 3;
  REQUIRE(WriteRandomCheckpoint(options, folder.path()).ok());
  const auto whole = RankAnswers(RankConfig(folder.path(), 1));
  ServerConfig two = RankConfig(folder.path(), 1);
  two.data_parallel_size = 2;
  two.expert_parallel = true;
  two.max_num_seqs = 1;  // each has a place; others wait
  CHECK(RankAnswers(two) == whole);
  ServerConfig four = two;
  four.tensor_parallel_size = 2;
  CHECK(RankAnswers(four) == whole);
}

TEST_CASE("the server whose rank fails in a norm", "[.ending_rank_0]") {
  ServeUntilARankEnds(Ends::kFailsInNorm);
}
TEST_CASE("the server whose rank throws", "[.ending_rank_1]") {
  ServeUntilARankEnds(Ends::kThrows);
}
TEST_CASE("the server whose first rank fails when it samples", "[.ending_rank_2]") {
  ServeUntilARankEnds(Ends::kFailsInSample);
}
TEST_CASE("the server whose rank says nothing", "[.ending_rank_3]") {
  ServeUntilARankEnds(Ends::kSilentInReduce);
}

TEST_CASE("ranks of which one does not start", "[.ending_rank_4]") {
  StartWithoutARank();
}

TEST_CASE("a rank that does not start ends the process with 4", "[e2e][ranks][faults]") {
  const EndedServer ended = RunEndingServer(Ends::kSilentAtStart);
  CAPTURE(ended.err);
  CHECK(ended.exit_code == kDeviceFailedExitCode);
  CHECK(ended.err.find("answered") == std::string::npos);
  CHECK(ended.err.find("ranks did not start within 0.1 s: 1") != std::string::npos);
}

TEST_CASE("a rank that fails ends the process with 4 and answers nobody", "[e2e][ranks][faults]") {
  const Ends ends = GENERATE(Ends::kFailsInNorm, Ends::kThrows, Ends::kFailsInSample);
  const EndedServer ended = RunEndingServer(ends);
  CAPTURE(static_cast<int>(ends), ended.err);
  CHECK(ended.exit_code == kDeviceFailedExitCode);
  CHECK(ended.err.find("answered") == std::string::npos);
  CHECK(ended.err.find(ends == Ends::kFailsInSample ? "rank 0: planted"
                       : ends == Ends::kThrows      ? "rank 1: vector::reserve"
                                                    : "rank 1: planted") != std::string::npos);
}

TEST_CASE("a rank that says nothing ends the process with 5", "[e2e][ranks][faults]") {
  constexpr int kStalled = 5;
  const EndedServer ended = RunEndingServer(Ends::kSilentInReduce);
  CAPTURE(ended.err);
  CHECK(ended.exit_code == kStalled);
  CHECK(ended.err.find("answered") == std::string::npos);
  CHECK(ended.err.find("ranks that the others wait for") != std::string::npos);
}

TEST_CASE("numbers of ranks that do not fit are refused in one line", "[e2e][ranks]") {
  const auto refused = [](const testing::Arguments& arguments) {
    const testing::Ended ended = testing::RunDsa(arguments, "");
    CHECK(ended.exit_code == 2);
    CHECK(ended.out.empty());
    return ended.err;
  };
  const std::string& model = testing::TinyModel();
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--tensor-parallel-size", "3"}) ==
        "error: tensor_parallel_size: 3 is none of 1, 2, which divide the model's 4 attention "
        "heads at borders of its blocks of 128 scaled values\n");
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--tensor-parallel-size", "2",
                 "--device", "cuda:1"}) ==
        "error: device: \"cuda:1\" names 1, but tensor_parallel_size is 2: as many devices as "
        "ranks, or cuda for the first ones\n");
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--tensor-parallel-size", "2",
                 "--device", "cuda:1,1"})
            .starts_with("error: --device: \"cuda:1,1\" is not one of cpu, cuda, cuda:N "));
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--expert-parallel"})
            .starts_with("error: expert_parallel: true with tensor_parallel_size: 1: "));
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--data-parallel-size", "2"})
            .starts_with("error: data_parallel_size: 2 without expert_parallel: "));
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--data-parallel-size", "2",
                 "--expert-parallel", "--device", "cuda"}) ==
        "error: data_parallel_size: 2 on device \"cuda\": only the device cpu has more than 1\n");
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--data-parallel-size", "33",
                 "--expert-parallel", "--tensor-parallel-size", "2"}) ==
        "error: data_parallel_size: 33 of tensor_parallel_size: 2 are 66 ranks, at most 64\n");
  CHECK(refused({"serve", model, "--tensor-parallel-size", "65"}) ==
        "error: --tensor-parallel-size: \"65\" is not an integer in [1, 64]\n");
}

TEST_CASE("inspect says what GPUs would hold without one", "[e2e][ranks]") {
  const std::string& model = testing::TinyModel();
  const auto inspected = [&](const std::string& gpus, const std::string& memory) {
    return testing::RunDsa({"inspect", model, "--max-model-len", "4096", "--gpus", gpus,
                            "--gpu-memory", memory, "--device-memory-reserve-bytes", "1000000000"},
                           "");
  };
  const testing::Ended two = inspected("2", "2000000000");
  CHECK(two.exit_code == 0);
  CHECK(two.out.find("GPUs            2 of 2.00 GB, 1.00 GB of it reserved") != std::string::npos);
  CHECK(two.out.find("\n  tensor parallel 2: weights ") != std::string::npos);
  CHECK(two.out.find("\n  tensor parallel 2, whole experts: weights ") != std::string::npos);
  CHECK(two.out.find(" sequences of 8K, ") != std::string::npos);
  // A byte fewer than two blocks: one is for rows of padding.
  const testing::Ended small = inspected("1", "1000000001");
  const std::string missing = small.out.substr(small.out.find("does not fit: ") + 14);
  const std::int64_t bytes = std::atoll(missing.c_str());
  CHECK(bytes > 0);
  const std::string enough = std::to_string(1000000001 + bytes);
  CHECK(inspected("1", enough).out.find("room for 64 tokens") != std::string::npos);
  const std::string short_of_it = std::to_string(1000000000 + bytes);
  CHECK(inspected("1", short_of_it).out.find("does not fit: 1 bytes") != std::string::npos);
  CHECK(inspected("3", "1000").err ==
        "error: gpus: 3 is none of 1, 2, which divide the model's 4 attention heads at borders of "
        "its blocks of 128 scaled values\n");
  CHECK(testing::RunDsa({"inspect", model, "--gpus", "2"}, "").exit_code == 2);
}

}  // namespace dsa
