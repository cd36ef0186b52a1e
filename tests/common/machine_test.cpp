// What a process may use of its machine, from the texts that the kernel shows.
#include "common/machine.h"

#include "tests/temporary_folder.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

namespace dsa {
namespace {

// The kernel's files below a folder of the test's own.
class KernelFiles final {
 public:
  const std::string& root() const { return folder_.path(); }
  void operator()(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }

 private:
  testing::TemporaryFolder folder_;
};

}  // namespace

TEST_CASE("a CPU quota is whole CPUs, rounded up, or none", "[common][machine]") {
  CHECK(ParseCpuQuota("200000 100000\n") == 2);
  CHECK(ParseCpuQuota("150000 100000\n") == 2);
  CHECK(ParseCpuQuota("200001 100000\n") == 3);
  CHECK(ParseCpuQuota("1000 100000\n") == 1);
  CHECK(ParseCpuQuota("50000\n 25000\n") == 2);  // two files of version 1
  for (const char* unlimited : {"max 100000\n", "-1\n 100000\n", "", "\n", "200000", "200000 0",
                                "0 100000", "x y", "2x 1", "99999999999999999999 1"}) {
    CAPTURE(unlimited);
    CHECK(ParseCpuQuota(unlimited) == std::nullopt);
  }
}

TEST_CASE("the folders of a control group are its own and those above", "[common][machine]") {
  using Folders = std::vector<std::string>;
  CHECK(CgroupFolders("/g", "0::/\n", "cpu") == Folders{"/g"});
  CHECK(CgroupFolders("/g", "0::/system.slice/a.service\n", "cpu") ==
        Folders{"/g/system.slice/a.service", "/g/system.slice", "/g"});
  CHECK(CgroupFolders("/g", "5:cpuset:/x\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/y\n", "cpu") ==
        Folders{"/g/cpu/docker/1", "/g/cpu/docker", "/g/cpu"});
  CHECK(CgroupFolders("/g", "0::/../other\n", "cpu") == Folders{"/g"});
  for (const char* none : {"", "\n", "x", "1:cpuacct:/a", "::", "1:"}) {
    CAPTURE(none);
    CHECK(CgroupFolders("/g", none, "cpu") ==
          (std::string(none) == "::" ? Folders{"/g"} : Folders{}));
  }
}

TEST_CASE("the smallest quota of any folder binds, in either version", "[common][machine]") {
  const KernelFiles write;
  const std::string& top = write.root();
  write("a/b/cpu.max", "max 100000\n");
  const std::vector<std::string> folders = CgroupFolders(top, "0::/a/b\n", "cpu");
  CHECK(SmallestCpuQuota(folders) == std::nullopt);
  write("a/cpu.max", "250000 100000\n");
  CHECK(SmallestCpuQuota(folders) == 3);
  write("a/b/cpu.max", "500000 100000\n");
  CHECK(SmallestCpuQuota(folders) == 3);
  // In a container of version 1 the path is the host's and only the mount is there.
  write("cpu/cpu.cfs_quota_us", "-1\n");
  write("cpu/cpu.cfs_period_us", "100000\n");
  const std::vector<std::string> old = CgroupFolders(top, "4:cpu:/docker/1\n", "cpu");
  CHECK(SmallestCpuQuota(old) == std::nullopt);
  write("cpu/cpu.cfs_quota_us", "120000\n");
  CHECK(SmallestCpuQuota(old) == 2);
}

TEST_CASE("memory limits leave what is not used, page cache aside", "[common][machine]") {
  CHECK(FindMemoryLine("MemTotal: 9 kB\nMemAvailable:   24173380 kB\n", "MemAvailable") ==
        std::int64_t{24'173'380} * 1024);
  CHECK(FindMemoryLine("inactive_file 5\nfile 7\n", "file") == 7);
  CHECK(FindMemoryLine("", "file") == std::nullopt);
  const KernelFiles write;
  const std::vector<std::string> folders = CgroupFolders(write.root(), "0::/a\n", "memory");
  write("a/memory.max", "max\n");
  write("a/memory.current", "500\n");
  CHECK_FALSE(SmallestMemoryLeft(folders));
  write("a/memory.max", "1000\n");
  CHECK(SmallestMemoryLeft(folders)->left == 500);
  write("a/memory.stat", "anon 300\nfile 200\ninactive_file 120\nactive_file 50\n");
  CHECK(SmallestMemoryLeft(folders)->left == 670);
  write("memory.max", "4000\n");
  write("memory.current", "100\n");
  CHECK(SmallestMemoryLeft(folders)->left == 670);  // the group's own limit binds
  write("memory.current", "3400\n");
  CHECK(SmallestMemoryLeft(folders)->left == 600);
  CHECK(SmallestMemoryLeft(folders)->limit == 4000);
  write("memory.current", "5000\n");
  CHECK(SmallestMemoryLeft(folders)->left == 0);
  write("memory/memory.limit_in_bytes", "1000\n");
  write("memory/memory.usage_in_bytes", "700\n");
  write("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 20\n");
  CHECK(SmallestMemoryLeft(CgroupFolders(write.root(), "4:memory:/docker/1\n", "memory"))->left ==
        420);
  CHECK(FindAvailableMemory().bytes > 0);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // these reserve terabytes
TEST_CASE("an address-space limit binds memory and threads", "[common][machine]") {
  constexpr std::int64_t kLeft = std::int64_t{200} << 20;
  // Threads whose stacks take twice as much: of 8 MiB each, or of what ulimit -s says.
  pthread_attr_t attributes;
  std::size_t stack_bytes = 0;
  REQUIRE(pthread_getattr_default_np(&attributes) == 0);
  REQUIRE(pthread_attr_getstacksize(&attributes, &stack_bytes) == 0);
  pthread_attr_destroy(&attributes);
  const std::int64_t count = 2 * kLeft / static_cast<std::int64_t>(stack_bytes);
  CHECK(ProbeThreads(count).ok());
  const std::string_view without = FindAvailableMemory().bound;
  CHECK(without != "address-space limit");
  std::ifstream statm("/proc/self/statm");
  std::int64_t pages = 0;
  statm >> pages;
  rlimit before{};
  getrlimit(RLIMIT_AS, &before);
  rlimit low = before;
  low.rlim_cur = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE) + kLeft);
  REQUIRE(setrlimit(RLIMIT_AS, &low) == 0);
  const AvailableMemory available = FindAvailableMemory();
  const Status threads = ProbeThreads(count);
  setrlimit(RLIMIT_AS, &before);
  CHECK(available.bound == "address-space limit");
  CHECK(available.bytes <= kLeft);
  CHECK(available.bytes > kLeft / 2);
  CHECK(available.bytes + available.taken == static_cast<std::int64_t>(low.rlim_cur));
  REQUIRE_FALSE(threads.ok());
  CHECK(ExitCode(threads.error()) == 3);
  CHECK(threads.error().message.starts_with(fmt::format("not enough threads: {} needed, ", count)));
}

TEST_CASE("a limit of data binds memory", "[common][machine]") {
  constexpr std::int64_t kLeft = std::int64_t{200} << 20;
  std::ifstream file("/proc/self/status");
  const std::string status(std::istreambuf_iterator<char>(file), {});
  rlimit before{};
  getrlimit(RLIMIT_DATA, &before);
  rlimit low = before;
  low.rlim_cur = static_cast<rlim_t>(FindMemoryLine(status, "VmData").value() + kLeft);
  REQUIRE(setrlimit(RLIMIT_DATA, &low) == 0);
  const AvailableMemory available = FindAvailableMemory();
  setrlimit(RLIMIT_DATA, &before);
  CHECK(available.bound == "data limit");
  CHECK(available.bytes <= kLeft);
  CHECK(available.bytes > kLeft / 2);
}
#endif

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose malloc is another one
TEST_CASE("a large block goes back when it is freed, also the second time", "[common][machine]") {
  GiveLargeBlocksBack();
  const std::size_t before = mallinfo2().hblks;
  for (int i = 0; i < 3; ++i) {
    auto block = std::make_unique<std::vector<char>>(std::size_t{16} << 20);
    CHECK(mallinfo2().hblks == before + 1);
    block.reset();
    CHECK(mallinfo2().hblks == before);
  }
}
#endif

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("pages of small blocks go back although others lie behind them", "[common][machine]") {
  constexpr std::int64_t kBytes = std::int64_t{64} << 20;
  constexpr std::size_t kBlockBytes = 1000;
  const auto resident = [] {
    std::ifstream file("/proc/self/status");
    return FindMemoryLine(std::string(std::istreambuf_iterator<char>(file), {}), "VmRSS").value();
  };
  std::vector<std::unique_ptr<char[]>> blocks;
  const std::int64_t before = resident();
  for (std::int64_t bytes = 0; bytes < kBytes; bytes += kBlockBytes) {
    blocks.push_back(std::make_unique<char[]>(kBlockBytes));
  }
  const std::unique_ptr<char[]> last = std::move(blocks.back());
  CHECK(resident() > before + kBytes / 2);
  blocks.clear();
  CHECK(resident() > before + kBytes / 2);
  GiveFreePagesBack();
  CHECK(resident() < before + kBytes / 8);
}
#endif

TEST_CASE("the affinity mask is what counts, not the machine", "[common][machine]") {
  cpu_set_t all;
  REQUIRE(sched_getaffinity(0, sizeof(all), &all) == 0);
  CHECK(CountUsableCpus().affinity == CPU_COUNT(&all));
  int first = 0;
  while (!CPU_ISSET(first, &all)) {
    ++first;
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  REQUIRE(sched_setaffinity(0, sizeof(one), &one) == 0);
  const UsableCpus cpus = CountUsableCpus();
  REQUIRE(sched_setaffinity(0, sizeof(all), &all) == 0);
  CHECK(cpus.affinity == 1);
  CHECK(cpus.count() == 1);
  CHECK(UsableCpus{.affinity = 8, .quota = 3}.count() == 3);
  CHECK(UsableCpus{.affinity = 2, .quota = 3}.count() == 2);
  CHECK(UsableCpus{.affinity = 2, .quota = std::nullopt}.count() == 2);
}

}  // namespace dsa
