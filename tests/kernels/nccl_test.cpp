// NCCL as ranks find and use it, with a library of the test's in its place: what is refused, and
// that nobody waits for ranks that failed or did not come.  Needs no GPU.
#include "kernels/cuda/nccl.h"

#include "kernels/comm/thread_group.h"
#include "kernels/device_failure.h"
#include "tests/kernels/fake_nccl.h"
#include "tests/this_program.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>
#include <dlfcn.h>
#include <fmt/core.h>

namespace dsa::testing {
namespace {

using cuda::Nccl;
using cuda::NcclGroup;

constexpr char kFake[] = DSA_FAKE_NCCL;
constexpr char kFakeWithoutAllGather[] = DSA_FAKE_NCCL_WITHOUT_ALL_GATHER;

template <typename Function>
Function FunctionOf(const char* path, const char* name) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  REQUIRE(library != nullptr);
  const auto function = reinterpret_cast<Function>(dlsym(library, name));
  REQUIRE(function != nullptr);
  return function;
}

void Plant(FakeNcclFault fault) {
  FunctionOf<SetFakeNcclFault>(kFake, kSetFakeNcclFault)(fault);
}

FakeNcclCounts Counts() {
  return FunctionOf<ReadFakeNcclCounts>(kFake, kReadFakeNcclCounts)();
}

void ForgetVariables() {
  for (const cuda::NcclVariable& variable : cuda::NcclVariables()) {
    unsetenv(variable.name);
  }
}

Result<Nccl> Open(const std::vector<std::string>& candidates) {
  ForgetVariables();
  return cuda::OpenNccl(candidates);
}

bool IsOneLine(const std::string& text) {
  return text.find('\n') == std::string::npos;
}

void CheckRefused(const Result<Nccl>& opened, const std::string& message) {
  REQUIRE_FALSE(opened.ok());
  CHECK(opened.error().code == ErrorCode::kFailedPrecondition);
  CHECK(opened.error().message == message);
  CHECK(IsOneLine(opened.error().message));
}

struct Failures {
  std::atomic<int> count{0};
  std::promise<std::string> first;
  void Add(std::string_view reason) {
    if (count.fetch_add(1) == 0) {
      first.set_value(std::string(reason));
    }
  }
};

Result<std::unique_ptr<NcclGroup>> Make(
    int ranks, Failures& failures, std::chrono::milliseconds limit = std::chrono::seconds(60)) {
  return NcclGroup::Create(
      Open({kFake}).value(), ranks, [](int) {},
      [&failures](std::string_view reason) { failures.Add(reason); }, limit);
}

template <typename Body>
void OnAll(int ranks, const Body& body) {
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&body, rank] { body(rank); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

}  // namespace

TEST_CASE("NCCL's versions are said as NCCL says them", "[nccl]") {
  CHECK(cuda::NcclVersionText(22809) == "2.28.9");
  CHECK(cuda::NcclVersionText(2804) == "2.8.4");
  CHECK(cuda::NcclVersionText(21005) == "2.10.5");
  CHECK(cuda::NcclCandidates("/opt/cuda").front() == "libnccl.so.2");
  CHECK(cuda::NcclCandidates("/opt/cuda")[1] == "/opt/cuda/lib64/libnccl.so.2");
}

TEST_CASE("a missing NCCL names every place that was tried, in one line", "[nccl]") {
  const auto opened = Open({"/nowhere/one.so", "/nowhere/two.so"});
  REQUIRE_FALSE(opened.ok());
  CHECK(opened.error().code == ErrorCode::kFailedPrecondition);
  for (const char* part : {"needs NCCL 2.22.3 or newer", "/nowhere/one.so", "/nowhere/two.so"}) {
    CHECK(opened.error().message.find(part) != std::string::npos);
  }
  CHECK(IsOneLine(opened.error().message));
}

TEST_CASE("what is not NCCL, lacks a function or is too old is refused", "[nccl]") {
  CheckRefused(Open({"/nowhere/one.so", "libm.so.6"}), "libm.so.6 has no ncclGetVersion");
  CheckRefused(Open({kFakeWithoutAllGather}),
               std::string(kFakeWithoutAllGather) + " has no ncclAllGather");
  Plant(FakeNcclFault::kOld);
  CheckRefused(Open({kFake}), std::string(kFake) + " is NCCL 2.18.5, needs NCCL 2.22.3 or newer");
  Plant(FakeNcclFault::kNone);
  const auto opened = Open({"/nowhere/one.so", kFake});
  REQUIRE(opened.ok());
  CHECK(opened.value().version == 22809);
}

TEST_CASE("NCCL is told what it would decide, and nobody is overridden", "[nccl]") {
  Plant(FakeNcclFault::kNone);
  for (const cuda::NcclVariable& variable : cuda::NcclVariables()) {
    CAPTURE(variable.name);
    ForgetVariables();
    setenv(variable.name, "other", 1);
    CheckRefused(cuda::OpenNccl({kFake}),
                 fmt::format("{} is \"other\" in the environment, ranks need \"{}\": unset it",
                             variable.name, variable.value));
    CHECK(std::string(std::getenv(variable.name)) == "other");
  }
  ForgetVariables();
  setenv("NCCL_NVLS_ENABLE", "0", 1);  // the same is no contradiction
  REQUIRE(cuda::OpenNccl({kFake}).ok());
  for (const cuda::NcclVariable& variable : cuda::NcclVariables()) {
    CHECK(std::string(std::getenv(variable.name)) == variable.value);
  }
  CHECK(std::string(std::getenv("NCCL_ALGO")) == "Ring");
  CHECK(std::string(std::getenv("NCCL_NVLS_ENABLE")) == "0");
  CHECK(std::string(std::getenv("NCCL_MIN_NCHANNELS")) == std::getenv("NCCL_MAX_NCHANNELS"));
}

TEST_CASE("ranks add up and gather through NCCL", "[nccl]") {
  constexpr int kRanks = 3;
  Plant(FakeNcclFault::kNone);
  Failures failures;
  std::vector<int> wrong(kRanks);
  {
    auto group = Make(kRanks, failures).value();
    OnAll(kRanks, [&](int rank) {
      for (int round = 0; round < 50; ++round) {
        const std::array<float, 2> part = {static_cast<float>(rank + round), 1.0F};
        std::array<float, 2> sum{};
        std::array<float, std::size_t{2} * kRanks> all{};
        const bool queued = group->AllReduce(rank, part.data(), sum.data(), 2, nullptr) &&
                            group->AllGather(rank, part.data(), all.data(), sizeof(part), nullptr);
        const auto expected = static_cast<float>(0 + 1 + 2 + 3 * round);
        wrong[static_cast<std::size_t>(rank)] += queued && sum[0] == expected && sum[1] == 3.0F &&
                                                         all[4] == static_cast<float>(2 + round) &&
                                                         all[5] == 1.0F
                                                     ? 0
                                                     : 1;
      }
    });
  }
  CHECK(wrong == std::vector<int>(kRanks));
  CHECK(failures.count == 0);
  CHECK(Counts().destroyed == kRanks);
  CHECK(Counts().aborted == 0);
  CHECK(Counts().used_late == 0);
}

TEST_CASE("a rank whose communicator fails is named, and the others are given up", "[nccl]") {
  Plant(FakeNcclFault::kInitFails);
  Failures failures;
  const auto made = Make(3, failures);
  REQUIRE_FALSE(made.ok());
  CHECK(made.error().code == ErrorCode::kFailedPrecondition);
  CHECK(made.error().message == "NCCL on rank 1: unhandled error: planted");
  CHECK(Counts().aborted == 2);
  CHECK(Counts().destroyed == 0);
}

TEST_CASE("a rank that does not come ends the process", "[.silent_rank]") {
  Plant(FakeNcclFault::kInitIsSilent);
  Failures failures;
  (void)Make(3, failures, std::chrono::seconds(3));  // in which the others surely come
}

TEST_CASE("a sum that NCCL refuses ends the process", "[.refused_sum]") {
  Plant(FakeNcclFault::kReduceFails);
  Failures failures;
  auto group = Make(2, failures).value();
  float part = 0;
  float sum = 0;
  (void)group->AllReduce(1, &part, &sum, 1, nullptr);
}

TEST_CASE("ranks that do not come are named with code 4, as is what NCCL refuses", "[nccl]") {
  const testing::EndedProgram silent = testing::RunThisProgram("[.silent_rank]");
  CHECK(silent.exit_code == kDeviceFailedExitCode);
  // The thread sanitizer has more to say, of the threads that are left.
  CHECK(silent.err.starts_with("error: device failed: NCCL: ranks did not come within 3 s: 1\n"));
  const testing::EndedProgram refused = testing::RunThisProgram("[.refused_sum]");
  CHECK(refused.exit_code == kDeviceFailedExitCode);
  CHECK(refused.err == "error: device failed: NCCL on rank 1: AllReduce: invalid usage: planted\n");
}

TEST_CASE("a failure behind the calls is reported once", "[nccl]") {
  Plant(FakeNcclFault::kFailsBehind);
  Failures failures;
  auto group = Make(2, failures).value();
  auto first = failures.first.get_future();
  REQUIRE(first.wait_for(std::chrono::seconds(30)) == std::future_status::ready);
  CHECK(first.get() == "NCCL on rank 1: unhandled error: planted");
  group.reset();
  CHECK(failures.count == 1);
}

// The watchdog's way: the group of threads fails, which must neither wait nor be waited for.
TEST_CASE("ranks that wait for one that never comes are released", "[nccl]") {
  constexpr int kRanks = 3;
  Plant(FakeNcclFault::kNone);
  Failures failures;
  ThreadGroup threads(kRanks);
  std::vector<int> queued(kRanks);
  {
    const std::shared_ptr<NcclGroup> group = Make(kRanks, failures).value();
    threads.OnFailure([group] { group->Abort(); });
    OnAll(kRanks, [&](int rank) {
      float part = 1;
      float sum = 0;
      if (rank == 1) {
        threads.Fail("rank 1: planted");
      } else {
        queued[static_cast<std::size_t>(rank)] =
            static_cast<int>(group->AllReduce(rank, &part, &sum, 1, nullptr) ||
                             group->AllReduce(rank, &part, &sum, 1, nullptr));
      }
    });
    threads.OnFailure({});
  }
  CHECK(queued == std::vector<int>(kRanks));
  CHECK(threads.failure() == "rank 1: planted");
  CHECK(Counts().aborted == kRanks);
  CHECK(Counts().destroyed == 0);
  CHECK(Counts().used_late == 0);
}

}  // namespace dsa::testing
