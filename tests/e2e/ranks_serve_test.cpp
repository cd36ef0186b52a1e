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
#include "tests/e2e/tiny_model.h"
#include "tests/end_sink.h"
#include "tests/temporary_folder.h"
#include "tests/this_program.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
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

enum class Ends {
  kFailsInNorm,
  kThrows,
  kFailsInSample,
  kSilentInReduce,
  kSilentAtStart,
  // Of data ranks, in the exchange.
  kFailsInDispatch,
  kThrowsInCombine,
  kFailsBeforeExperts,
  kSilentInDispatch,
  kSilentInCombine,
  kLate,           // in every exchange, and answers
  kSilentInReply,  // before it queues a step, while the other waits for its device
};

// After the warm-up, in the middle of a step.
class EndingRank final : public ForwardingBackend {
 public:
  EndingRank(Backend& inner, int rank, Ends ends, const ThreadGroup& group)
      : ForwardingBackend(inner), rank_(rank), ends_(ends), group_(group) {}

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
  void Dispatch(const DispatchParams& params) override {
    if (has_queued_) {
      return;
    }
    if (rank_ == 1 && ends_ == Ends::kFailsInDispatch && ++calls_ > kExchanges) {
      DeviceFailed("planted");
    }
    while (rank_ == 1 && ends_ == Ends::kSilentInDispatch && ++calls_ > kExchanges) {
      pause();
    }
    if (rank_ == 1 && ends_ == Ends::kLate) {
      WaitUntilAwaited();
    }
    inner_.Dispatch(params);
  }
  void RoutedExperts(const RoutedExpertsParams& params) override {
    if (rank_ == 1 && ends_ == Ends::kFailsBeforeExperts && ++calls_ > kExchanges) {
      DeviceFailed("planted");
    }
    inner_.RoutedExperts(params);
  }
  void Combine(const CombineParams& params) override {
    if (has_queued_) {
      return;
    }
    if (rank_ == 0 && ends_ == Ends::kThrowsInCombine && ++calls_ > kExchanges) {
      std::vector<char>().reserve(std::vector<char>().max_size() + 1);
    }
    while (rank_ == 0 && ends_ == Ends::kSilentInCombine && ++calls_ > kExchanges) {
      pause();
    }
    if (rank_ == 1 && ends_ == Ends::kLate) {
      WaitUntilAwaited();
    }
    inner_.Combine(params);
  }
  // As of GPUs, which meet on the devices: what a rank queues returns, and its end never comes.
  void Upload(void* target, const HostBuffer& source, std::size_t offset,
              std::size_t bytes) override {
    if (ends_ == Ends::kSilentInReply && is_serving_ && ++calls_ > kSteps) {
      while (rank_ == 1) {
        pause();
      }
      has_queued_ = true;
    }
    inner_.Upload(target, source, offset, bytes);
  }
  void WaitFor(int event) override {
    while (has_queued_) {
      pause();
    }
    inner_.WaitFor(event);
  }
  void BeginServing() { is_serving_ = true; }

 private:
  // The other rank is there and waits for this one.
  void WaitUntilAwaited() const {
    while (group_.Absent() != std::vector<int>{1}) {
      std::this_thread::yield();
    }
  }

  static constexpr int kCalls = 200;
  static constexpr int kSamples = 10;
  static constexpr int kExchanges = 60;
  static constexpr int kSteps = 5;
  const int rank_;
  const Ends ends_;
  const ThreadGroup& group_;
  int calls_ = 0;
  bool has_queued_ = false;
  std::atomic<bool> is_serving_ = false;
};

// This program again, as the server whose rank ends so.
testing::EndedProgram RunEndingServer(Ends ends) {
  return testing::RunThisProgram(fmt::format("[.ending_rank_{}]", static_cast<int>(ends)));
}

void ServeUntilARankEnds(Ends ends) {
  ThreadGroup group(2);
  CpuBackend first(1, CpuSeat{.group = &group, .rank = 0});
  CpuBackend second(1, CpuSeat{.group = &group, .rank = 1});
  EndingRank first_ends(first, 0, ends, group);
  EndingRank second_ends(second, 1, ends, group);
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

// Two data ranks with a place each: two requests run, one waits for a rank.
void ServeUntilADataRankEnds(Ends ends) {
  ThreadGroup group(2, 2);
  CpuBackend first(1, CpuSeat{.group = &group, .rank = 0});
  CpuBackend second(1, CpuSeat{.group = &group, .rank = 1});
  EndingRank first_ends(first, 0, ends, group);
  EndingRank second_ends(second, 1, ends, group);
  ServerConfig config = RankConfig(testing::TinyModel(), 1);
  config.data_parallel_size = 2;
  config.expert_parallel = true;
  config.max_num_seqs = 1;
  const bool is_silent = ends == Ends::kSilentInDispatch || ends == Ends::kSilentInCombine ||
                         ends == Ends::kSilentInReply;
  config.stall_timeout_s = is_silent ? 1 : 600;
  const auto app = App::StartOn({.group = &group, .backends = {&first_ends, &second_ends}}, config);
  REQUIRE(app.ok());
  first_ends.BeginServing();
  second_ends.BeginServing();
  std::vector<std::shared_ptr<testing::EndSink>> sinks;
  for (int i = 0; i < 3; ++i) {
    Request request;
    request.prompt = {TokenId{1}, TokenId{2 + i}};
    request.stop.max_tokens = ends == Ends::kLate ? 4 : 400;
    request.stop.ignore_end = true;
    sinks.push_back(std::make_shared<testing::EndSink>());
    REQUIRE(app.value()->engine().Submit(std::move(request), sinks.back()).ok());
  }
  for (const auto& sink : sinks) {
    sink->Wait();
  }
  while (ends != Ends::kLate) {
    pause();
  }
}

int CountOf(const std::string& text, const std::string& word) {
  int count = 0;
  for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    ++count;
  }
  return count;
}

// What the log says of a group that stalled: the ranks that the others wait for.
std::string LateRanks(const testing::EndedProgram& ended) {
  const auto line = ended.err.find("ranks that the others wait for");
  const std::string name = "ranks=\"";
  const auto begin = ended.err.find(name, line);
  if (line == std::string::npos || begin == std::string::npos) {
    return "nobody";
  }
  const auto first = begin + name.size();
  return ended.err.substr(first, ended.err.find('"', first) - first);
}

void StartWithoutARank() {
  ThreadGroup group(2);
  CpuBackend first(1, CpuSeat{.group = &group, .rank = 0});
  CpuBackend second(1, CpuSeat{.group = &group, .rank = 1});
  EndingRank silent(second, 1, Ends::kSilentAtStart, group);
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
      RankGroup::Create(group, ranks, checkpoint.config(), config, std::chrono::seconds(4));
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
  const testing::EndedProgram ended = RunEndingServer(Ends::kSilentAtStart);
  CAPTURE(ended.err);
  CHECK(ended.exit_code == kDeviceFailedExitCode);
  CHECK(ended.err.find("answered") == std::string::npos);
  CHECK(ended.err.find("ranks did not start within 4 s: 1") != std::string::npos);
}

TEST_CASE("a rank that fails ends the process with 4 and answers nobody", "[e2e][ranks][faults]") {
  const Ends ends = GENERATE(Ends::kFailsInNorm, Ends::kThrows, Ends::kFailsInSample);
  const testing::EndedProgram ended = RunEndingServer(ends);
  CAPTURE(static_cast<int>(ends), ended.err);
  CHECK(ended.exit_code == kDeviceFailedExitCode);
  CHECK(ended.err.find("answered") == std::string::npos);
  CHECK(ended.err.find(ends == Ends::kFailsInSample ? "rank 0: planted"
                       : ends == Ends::kThrows      ? "rank 1: vector::reserve"
                                                    : "rank 1: planted") != std::string::npos);
}

TEST_CASE("a rank that says nothing ends the process with 5", "[e2e][ranks][faults]") {
  constexpr int kStalled = 5;
  const testing::EndedProgram ended = RunEndingServer(Ends::kSilentInReduce);
  CAPTURE(ended.err);
  CHECK(ended.exit_code == kStalled);
  CHECK(ended.err.find("answered") == std::string::npos);
  CHECK(LateRanks(ended) == "1");
}

TEST_CASE("the server whose data rank fails in Dispatch", "[.ending_rank_5]") {
  ServeUntilADataRankEnds(Ends::kFailsInDispatch);
}
TEST_CASE("the server whose data rank throws in Combine", "[.ending_rank_6]") {
  ServeUntilADataRankEnds(Ends::kThrowsInCombine);
}
TEST_CASE("the server whose data rank fails before its experts", "[.ending_rank_7]") {
  ServeUntilADataRankEnds(Ends::kFailsBeforeExperts);
}
TEST_CASE("the server whose data rank says nothing in Dispatch", "[.ending_rank_8]") {
  ServeUntilADataRankEnds(Ends::kSilentInDispatch);
}
TEST_CASE("the server whose data rank says nothing in Combine", "[.ending_rank_9]") {
  ServeUntilADataRankEnds(Ends::kSilentInCombine);
}
TEST_CASE("the server whose data rank is late in every exchange", "[.ending_rank_10]") {
  ServeUntilADataRankEnds(Ends::kLate);
}

TEST_CASE("the server whose data rank says nothing in a reply", "[.ending_rank_11]") {
  ServeUntilADataRankEnds(Ends::kSilentInReply);
}

TEST_CASE("a data rank that fails in the exchange ends the process with 4 and every call",
          "[e2e][ranks][faults]") {
  const Ends ends =
      GENERATE(Ends::kFailsInDispatch, Ends::kThrowsInCombine, Ends::kFailsBeforeExperts);
  const testing::EndedProgram ended = RunEndingServer(ends);
  CAPTURE(static_cast<int>(ends), ended.err);
  CHECK(ended.exit_code == kDeviceFailedExitCode);
  CHECK(ended.err.find("answered") == std::string::npos);
  CHECK(CountOf(ended.err, "unavailable\n") == 3);
  CHECK(ended.err.find(ends == Ends::kThrowsInCombine ? "rank 0: vector::reserve"
                                                      : "rank 1: planted") != std::string::npos);
}

TEST_CASE("a data rank that says nothing ends the process with 5, and is named",
          "[e2e][ranks][faults]") {
  constexpr int kStalled = 5;
  const Ends ends = GENERATE(Ends::kSilentInDispatch, Ends::kSilentInCombine, Ends::kSilentInReply);
  const testing::EndedProgram ended = RunEndingServer(ends);
  CAPTURE(static_cast<int>(ends), ended.err);
  CHECK(ended.exit_code == kStalled);
  CHECK(ended.err.find("answered") == std::string::npos);
  CHECK(LateRanks(ended) == (ends == Ends::kSilentInCombine ? "0" : "1"));
}

TEST_CASE("a data rank that is late is waited for", "[e2e][ranks][faults]") {
  const testing::EndedProgram ended = RunEndingServer(Ends::kLate);
  CAPTURE(ended.err);
  CHECK(ended.exit_code == 0);
  CHECK(CountOf(ended.err, "answered\n") == 3);
}

}  // namespace dsa
