// Memory and threads at the start: what a server takes is counted before, and taken then.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/forwarding_backend.h"
#include "server/sizing.h"
#include "tests/e2e/process.h"
#include "tests/e2e/tiny_server.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <poll.h>
#include <unistd.h>

namespace dsa {
namespace {

using testing::Arguments;
using testing::Process;
using testing::RunDsa;
using testing::TinyConfig;
using testing::TinyModel;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::int64_t kGiB = std::int64_t{1} << 30;

// A machine with less memory than this one.
class LimitedBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  std::int64_t AvailableBytes() const override { return available; }

  std::int64_t available = std::int64_t{1} << 40;
};

// A machine that has all memory it says, but for one block.
class FailingMemory final : public ForwardingBackend {
 public:
  FailingMemory(Backend& inner, int fails_at) : ForwardingBackend(inner), fails_at_(fails_at) {}

  Result<DeviceBuffer> Allocate(std::size_t bytes) override {
    return Fails() ? Missing() : inner_.Allocate(bytes);
  }
  Result<HostBuffer> AllocateHost(std::size_t bytes) override {
    return Fails() ? Missing() : inner_.AllocateHost(bytes);
  }
  Status ReserveScratch(const ScratchLimits& limits) override {
    return Fails() ? Status(Missing()) : inner_.ReserveScratch(limits);
  }

  int asked() const { return asked_; }

 private:
  bool Fails() { return asked_++ == fails_at_; }
  static Error Missing() { return {ErrorCode::kFailedPrecondition, "not enough memory: planted"}; }

  const int fails_at_;
  int asked_ = 0;
};

// The number of MiB that a refusal says would suffice.
std::int64_t MibThatSuffice(const std::string& message) {
  const std::size_t end = message.find(" MiB would suffice");
  REQUIRE(end != std::string::npos);
  const std::size_t begin = message.rfind(' ', end - 1);
  return std::stol(message.substr(begin + 1, end - begin - 1));
}

constexpr std::int64_t kWeights = 1'000'000;

Result<ServerSizes> SizesOf(const ServerConfig& config, const Checkpoint& checkpoint,
                            Backend& backend) {
  Backend* const only = &backend;
  return SizeServer(config,
                    {.config = checkpoint.config(),
                     .weight_bytes = [](const RankPlace&) { return kWeights; },
                     .vocabulary_limit = 400},
                    {&only, 1});
}

}  // namespace

TEST_CASE("the automatic cache takes what the rest leaves, and no server more than there is",
          "[e2e][memory]") {
  CpuBackend cpu(2);
  LimitedBackend backend(cpu);
  const Checkpoint checkpoint = Checkpoint::Open(TinyModel()).value();
  ServerConfig config = TinyConfig();  // 16 sequences of 8 blocks
  const auto sizes = [&] { return SizesOf(config, checkpoint, backend); };
  backend.available = 500 * kMiB;  // here and below gRPC's part is at its least
  const ServerSizes roomy = sizes().value();
  CHECK(roomy.engine.blocks == 16 * 8);
  const ServerMemory& memory = roomy.memory;
  CHECK(memory.weights == kWeights);
  CHECK(memory.executor.scratch > 0);
  CHECK(memory.executor.total() ==
        PlanMemory(backend, checkpoint.config(), roomy.executor).total());
  const std::int64_t block = memory.executor.cache / (roomy.engine.blocks + 1);  // padding's
  backend.available = memory.needed() - 20 * block;
  CHECK(sizes().value().engine.blocks == 16 * 8 - 20);
  CHECK(sizes().value().memory.needed() == backend.available);
  backend.available = memory.needed() - std::int64_t{16 - 1} * 8 * block;
  CHECK(sizes().value().engine.blocks == 8);  // one sequence
  --backend.available;
  const Error error = sizes().error();
  CHECK(ExitCode(error) == 3);
  CHECK(error.message.rfind("not enough memory: ", 0) == 0);
  // On the CPU at most 1 GiB, and a quarter of what is free.
  ServerConfig many = config;
  many.max_num_seqs = 1024;
  many.max_num_batched_tokens = 1024;
  std::swap(config, many);
  backend.available = 64 * kGiB;
  CHECK(sizes().value().engine.blocks == kGiB / block);
  backend.available = 3 * kGiB;
  CHECK(sizes().value().engine.blocks == 3 * kGiB / 4 / block);
  std::swap(config, many);
  // A size that was asked for is not made smaller.
  backend.available = memory.needed() - 20 * block;
  config.kv_cache_memory_bytes = memory.executor.cache;
  CHECK(ExitCode(sizes().error()) == 3);
  CHECK(ExitCode(App::StartOn(backend, config).error()) == 3);
}

TEST_CASE("a CUDA device's cache leaves its reserve free, and one that does not fit is named",
          "[e2e][memory]") {
  CpuBackend cpu(2);
  LimitedBackend backend(cpu);
  const Checkpoint checkpoint = Checkpoint::Open(TinyModel()).value();
  ServerConfig config = TinyConfig();
  config.device = "cuda";
  config.device_memory_reserve_bytes = 100 * kMiB;
  const auto sizes = [&] { return SizesOf(config, checkpoint, backend); };
  backend.available = 500 * kMiB;
  const ServerSizes roomy = sizes().value();
  CHECK(roomy.engine.blocks == 16 * 8);
  CHECK(roomy.memory.reserve == 100 * kMiB);
  CHECK(roomy.memory.host == 0);  // requests and texts are not on the device
  CHECK_FALSE(roomy.executor.recorded.empty());
  const std::int64_t block = roomy.memory.executor.cache / (roomy.engine.blocks + 1);
  backend.available = roomy.memory.needed() - 20 * block;
  CHECK(sizes().value().engine.blocks == 16 * 8 - 20);
  config.device_memory_reserve_bytes += 5 * block;
  CHECK(sizes().value().engine.blocks == 16 * 8 - 25);
  CHECK(sizes().value().memory.needed() == backend.available);
  config.device_memory_reserve_bytes = backend.available;
  const Error error = sizes().error();
  CAPTURE(error.message);
  CHECK(ExitCode(error) == 3);
  CHECK(error.message.starts_with("not enough memory: "));
  const std::string have = fmt::format("{:.2f} MB", static_cast<double>(backend.available) / 1e6);
  CHECK(error.message.find("reserve " + have) != std::string::npos);
  CHECK(error.message.find("; " + have + " available") != std::string::npos);
  CHECK(error.message.find("or device_memory_reserve_bytes") != std::string::npos);
  CHECK(error.message.find('\n') == std::string::npos);
}

TEST_CASE("the memory that a refusal asks for suffices, and little less does not",
          "[e2e][memory]") {
  CpuBackend cpu(2);
  LimitedBackend backend(cpu);
  const Checkpoint checkpoint = Checkpoint::Open(TinyModel()).value();
  const auto sizes = [&](const ServerConfig& config, std::int64_t available) {
    backend.available = available;
    return SizesOf(config, checkpoint, backend);
  };
  ServerConfig plain = TinyConfig();
  ServerConfig large = TinyConfig();  // needs gigabytes, of which buffers take a share
  large.http_listen = "127.0.0.1:0";
  large.kv_cache_memory_bytes = 3 * kGiB;
  ServerConfig many = TinyConfig();
  many.max_queued_requests = 100'000;
  many.max_message_bytes = 100 * kMiB;
  for (const ServerConfig& config : {plain, large, many}) {
    for (const std::int64_t available : {std::int64_t{0}, 100 * kMiB, 300 * kMiB, kGiB, 3 * kGiB}) {
      const Result<ServerSizes> refused = sizes(config, available);
      if (refused.ok()) {
        continue;
      }
      CAPTURE(available, refused.error().message);
      CHECK(ExitCode(refused.error()) == 3);
      const std::int64_t enough = MibThatSuffice(refused.error().message);
      CHECK(sizes(config, enough * kMiB).ok());
      CHECK_FALSE(sizes(config, (enough - 10) * kMiB).ok());  // it says 8 more than it takes
    }
  }
}

TEST_CASE("memory that is missing at the start, wherever, is one line and 3", "[e2e][memory]") {
  CpuBackend cpu(2);
  ServerConfig config = TinyConfig();
  config.max_num_seqs = 2;
  int refused = 0;
  for (int fails_at = 0;; ++fails_at) {
    CpuBackend inner(2);
    FailingMemory backend(inner, fails_at);
    const auto started = App::StartOn(backend, config);
    if (backend.asked() <= fails_at) {
      CHECK(started.ok());
      break;  // it started with fewer
    }
    CAPTURE(fails_at);
    REQUIRE_FALSE(started.ok());
    CHECK(ExitCode(started.error()) == 3);
    CHECK(started.error().message.find("not enough memory: planted") != std::string::npos);
    CHECK(started.error().message.find('\n') == std::string::npos);
    ++refused;
  }
  CHECK(refused > 5);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose memory is another
namespace {

// Page faults of each of this process's threads.
std::map<int, std::int64_t> FaultsOfThreads() {
  std::map<int, std::int64_t> faults;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "stat");
    std::string stat(std::istreambuf_iterator<char>(file), {});
    stat.erase(0, stat.rfind(')') + 1);
    std::istringstream fields(stat);
    std::string word;
    for (int field = 3; field <= 10 && fields >> word; ++field) {
    }
    faults[std::stoi(task.path().filename())] = std::stol(word);
  }
  return faults;
}

std::int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t pages = 0;
  statm >> pages >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

// The names of a process's threads by their ids, beside those in `names`.  gRPC names its own, soon
// after they have begun: what a thread was called last counts.
void AddThreads(pid_t process, std::map<std::string, std::string>& names) {
  std::error_code ignored;
  for (const auto& task :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/task", process), ignored)) {
    std::string name;
    if (std::getline(std::ifstream(task.path() / "comm"), name)) {
      names[task.path().filename()] = name;
    }
  }
}

}  // namespace

TEST_CASE("a cache's pages are there when it is, by the work of all threads", "[e2e][memory]") {
  constexpr std::int64_t kBytes = 512 * kMiB;
  CpuBackend backend(2);
  const std::int64_t resident = ResidentBytes();
  const std::map<int, std::int64_t> before = FaultsOfThreads();
  const DeviceBuffer buffer = backend.Allocate(kBytes).value();
  const std::map<int, std::int64_t> after = FaultsOfThreads();
  CHECK(ResidentBytes() - resident > kBytes * 9 / 10);
  int touching = 0;
  for (const auto& [thread, faults] : after) {
    const auto had = before.find(thread);
    // Of at least 256, where pages are as large as they may be.
    touching += faults - (had == before.end() ? 0 : had->second) >= 32 ? 1 : 0;
  }
  CHECK(touching == 2);
}

TEST_CASE("a server that is ready starts no thread of its own", "[e2e][memory]") {
  const Arguments serve = {"serve",
                           "--model",
                           TinyModel(),
                           "--listen",
                           "127.0.0.1:0",
                           "--http-listen",
                           "127.0.0.1:0",
                           "--max-model-len",
                           "512",
                           "--threads",
                           "2",
                           "--max-num-seqs",
                           "4"};
  Process server(serve, testing::Streams::kPipes);
  REQUIRE(server.WaitForErr("\"configuration\""));
  const std::size_t at = server.err().find("\"port\":") + 7;
  const std::string address = fmt::format("127.0.0.1:{}", std::stoi(server.err().substr(at)));
  std::map<std::string, std::string> names;
  AddThreads(server.pid(), names);
  std::set<std::string> at_ready;
  for (const auto& [thread, name] : names) {
    at_ready.insert(thread);
  }
  std::atomic<bool> done = false;
  std::thread load([&] {
    for (int i = 0; i < 3; ++i) {
      CHECK(RunDsa({"complete", "--address", address, "--ids", "5,6,7", "--max-tokens", "20"}, "")
                .exit_code == 0);
      CHECK(RunDsa({"healthcheck", "--address", address}, "").exit_code == 0);
    }
    done = true;
  });
  while (!done) {
    AddThreads(server.pid(), names);
    poll(nullptr, 0, 1);
  }
  load.join();
  AddThreads(server.pid(), names);
  int own = 0;
  for (const auto& [thread, name] : names) {
    if (name == "dsa") {
      CAPTURE(thread);
      CHECK(at_ready.count(thread) == 1);
      ++own;
    }
  }
  CHECK(own >= 8);
  server.Signal(SIGTERM);
  CHECK(server.Wait().exit_code == 0);
}
#endif

}  // namespace dsa
