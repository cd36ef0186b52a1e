#include "common/machine.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include <fmt/core.h>
#include <malloc.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

namespace dsa {
namespace {

constexpr char kCgroupRoot[] = "/sys/fs/cgroup";

// A file of the kernel, whose size is known only once it is read; nullopt where there is none.
std::optional<std::string> ReadKernelFile(const std::string& path) {
  const std::ifstream file(path);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    return std::nullopt;
  }
  return text.str();
}

// The next word, cut off the front of `rest`; empty at its end.
std::string_view TakeWord(std::string_view& rest) {
  constexpr std::string_view kBlanks = " \t\n";
  rest.remove_prefix(std::min(rest.find_first_not_of(kBlanks), rest.size()));
  const std::string_view word = rest.substr(0, rest.find_first_of(kBlanks));
  rest.remove_prefix(word.size());
  return word;
}

// A positive number; 0 for anything else.
std::int64_t PositiveNumber(std::string_view word) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  const bool whole = error == std::errc() && end == word.data() + word.size();
  return whole ? std::max(number, std::int64_t{0}) : 0;
}

bool ListHolds(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    const std::string_view item = list.substr(0, list.find(','));
    if (item == name) {
      return true;
    }
    list.remove_prefix(std::min(item.size() + 1, list.size()));
  }
  return false;
}

std::int64_t AffinityCount() {
  constexpr int kCpusMax = 1 << 20;
  for (int cpus = CPU_SETSIZE; cpus <= kCpusMax; cpus *= 2) {  // the kernel's set may be larger
    std::vector<cpu_set_t> set(CPU_ALLOC_SIZE(cpus) / sizeof(cpu_set_t));
    const std::size_t bytes = set.size() * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, set.data()) == 0) {
      return std::max(CPU_COUNT_S(bytes, set.data()), 1);
    }
  }
  return std::max(1U, std::thread::hardware_concurrency());
}

}  // namespace

std::optional<std::int64_t> ParseCpuQuota(std::string_view text) {
  const std::int64_t quota_us = PositiveNumber(TakeWord(text));
  const std::int64_t period_us = PositiveNumber(TakeWord(text));
  if (quota_us == 0 || period_us == 0) {
    return std::nullopt;
  }
  return (quota_us - 1) / period_us + 1;
}

std::vector<std::string> CgroupFolders(const std::string& root, std::string_view membership,
                                       std::string_view controller) {
  std::vector<std::string> folders;
  while (!membership.empty()) {
    const std::string_view line = membership.substr(0, membership.find('\n'));
    membership.remove_prefix(std::min(line.size() + 1, membership.size()));
    // "ID:CONTROLLERS:PATH"; version 2 has the id 0 and no controllers.
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', std::min(first, line.size() - 1) + 1);
    if (first == std::string_view::npos || second == std::string_view::npos) {
      continue;
    }
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !ListHolds(controllers, controller)) {
      continue;
    }
    const std::string mount = controllers.empty() ? root : root + "/" + std::string(controller);
    std::string_view path = line.substr(second + 1);
    if (path == "/" || path.find("..") != std::string_view::npos) {
      path = {};  // ".." leaves what is mounted here
    }
    while (!path.empty()) {
      folders.push_back(mount + std::string(path));
      path = path.substr(0, std::min(path.rfind('/'), path.size()));
    }
    folders.push_back(mount);
  }
  return folders;
}

std::optional<std::int64_t> SmallestCpuQuota(const std::vector<std::string>& folders) {
  std::optional<std::int64_t> smallest;
  for (const std::string& folder : folders) {
    std::optional<std::string> text = ReadKernelFile(folder + "/cpu.max");
    if (!text) {
      text = ReadKernelFile(folder + "/cpu.cfs_quota_us").value_or("") + " " +
             ReadKernelFile(folder + "/cpu.cfs_period_us").value_or("");
    }
    const std::optional<std::int64_t> quota = ParseCpuQuota(*text);
    if (quota && (!smallest || *quota < *smallest)) {
      smallest = quota;
    }
  }
  return smallest;
}

std::optional<std::int64_t> FindMemoryLine(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    std::string_view word = TakeWord(line);
    if (word.ends_with(':')) {
      word.remove_suffix(1);
    }
    if (word == name) {
      const std::int64_t number = PositiveNumber(TakeWord(line));
      return TakeWord(line) == "kB" ? number * 1024 : number;
    }
  }
  return std::nullopt;
}

std::optional<MemoryLeft> SmallestMemoryLeft(const std::vector<std::string>& folders) {
  std::optional<MemoryLeft> smallest;
  for (const std::string& folder : folders) {
    const bool is_v2 = ReadKernelFile(folder + "/memory.max").has_value();
    const auto read = [&](const char* v2, const char* v1) {
      const std::optional<std::string> text = ReadKernelFile(folder + (is_v2 ? v2 : v1));
      std::string_view rest = text ? std::string_view(*text) : std::string_view();
      return PositiveNumber(TakeWord(rest));
    };
    const std::int64_t limit = read("/memory.max", "/memory.limit_in_bytes");
    if (limit == 0) {
      continue;  // "max", or no such folder
    }
    const std::string stat = ReadKernelFile(folder + "/memory.stat").value_or("");
    const std::string prefix = is_v2 ? "" : "total_";  // with the groups below, as the usage is
    const std::int64_t cached = FindMemoryLine(stat, prefix + "active_file").value_or(0) +
                                FindMemoryLine(stat, prefix + "inactive_file").value_or(0);
    const std::int64_t used = read("/memory.current", "/memory.usage_in_bytes") - cached;
    const std::int64_t left = std::max(limit - std::max(used, std::int64_t{0}), std::int64_t{0});
    if (!smallest || left < smallest->left) {
      smallest = {.limit = limit, .left = left};
    }
  }
  return smallest;
}

std::int64_t RaiseDescriptorLimit() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const rlim_t before = std::exchange(limit.rlim_cur, limit.rlim_max);
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    limit.rlim_cur = before;
  }
  constexpr rlim_t kMax = rlim_t{1} << 31;  // also for RLIM_INFINITY
  return static_cast<std::int64_t>(std::min(limit.rlim_cur, kMax));
}

namespace {

struct ProcessLimit {
  __rlimit_resource_t resource;
  std::string_view used;  // a line of /proc/self/status
  std::string_view name;
};

// nullopt where it limits nothing.
std::optional<MemoryLeft> LeftBy(const ProcessLimit& of) {
  rlimit limit{};
  getrlimit(of.resource, &limit);
  if (limit.rlim_cur == RLIM_INFINITY) {
    return std::nullopt;
  }
  const std::string status = ReadKernelFile("/proc/self/status").value_or("");
  const std::int64_t used = FindMemoryLine(status, of.used).value_or(0);
  const auto bytes = static_cast<std::int64_t>(limit.rlim_cur);
  return MemoryLeft{.limit = bytes, .left = std::max(bytes - used, std::int64_t{0})};
}

}  // namespace

AvailableMemory FindAvailableMemory() {
  const std::string meminfo = ReadKernelFile("/proc/meminfo").value_or("");
  const std::int64_t page_bytes = sysconf(_SC_PAGESIZE);
  AvailableMemory least = {
      .bytes =
          FindMemoryLine(meminfo, "MemAvailable").value_or(sysconf(_SC_AVPHYS_PAGES) * page_bytes),
      .bound = "RAM",
      .taken = 0};
  const auto consider = [&](const std::optional<MemoryLeft>& of, std::string_view name) {
    if (of && of->left < least.bytes) {
      least = {.bytes = of->left, .bound = name, .taken = of->limit - of->left};
    }
  };
  const std::string membership = ReadKernelFile("/proc/self/cgroup").value_or("");
  consider(SmallestMemoryLeft(CgroupFolders(kCgroupRoot, membership, "memory")), "cgroup limit");
  for (const ProcessLimit& limit :
       {ProcessLimit{.resource = RLIMIT_AS, .used = "VmSize", .name = "address-space limit"},
        ProcessLimit{.resource = RLIMIT_DATA, .used = "VmData", .name = "data limit"}}) {
    consider(LeftBy(limit), limit.name);
  }
  return least;
}

void SaveAddressSpace() {
  rlimit address_space{};
  getrlimit(RLIMIT_AS, &address_space);
  if (address_space.rlim_cur != RLIM_INFINITY) {
    mallopt(M_ARENA_MAX, 1);
  }
}

void GiveLargeBlocksBack() {
  constexpr int kLargeBytes = 1 << 20;
  mallopt(M_MMAP_THRESHOLD, kLargeBytes);
}

void GiveFreePagesBack() {
  malloc_trim(0);
}

Status CheckStackLimit() {
  constexpr rlim_t kLeastKib = 256;
  rlimit limit{};
  getrlimit(RLIMIT_STACK, &limit);
  if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur / 1024 < kLeastKib) {
    return Error{
        .code = ErrorCode::kFailedPrecondition,
        .message = fmt::format("the limit of stacks is {} KiB, at least {} are needed: see "
                               "ulimit -s",
                               limit.rlim_cur / 1024, kLeastKib)};
  }
  return {};
}

Status ProbeThreads(std::int64_t threads) {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;  // guarded by mutex
  std::vector<std::thread> started;
  Status status;
  try {
    started.reserve(static_cast<std::size_t>(threads));
    for (std::int64_t i = 0; i < threads; ++i) {
      started.emplace_back([&] {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return done; });
      });
    }
  } catch (const std::system_error& error) {
    status =
        Error{.code = ErrorCode::kFailedPrecondition,
              .message = fmt::format("not enough threads: {} needed, {} could be started ({}): "
                                     "see ulimit -u, -v, -d and the container's pids limit",
                                     threads, started.size(), error.code().message())};
  }
  {
    const std::lock_guard lock(mutex);
    done = true;
  }
  changed.notify_all();
  for (std::thread& thread : started) {
    thread.join();
  }
  return status;
}

UsableCpus CountUsableCpus() {
  const std::string membership = ReadKernelFile("/proc/self/cgroup").value_or("");
  return {.affinity = AffinityCount(),
          .quota = SmallestCpuQuota(CgroupFolders(kCgroupRoot, membership, "cpu"))};
}

}  // namespace dsa
