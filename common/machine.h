// What of this machine the process may use: a container or an affinity mask gives it less than all.
// Reads /proc and /sys/fs/cgroup (versions 1 and 2); any thread.
#pragma once

#include "common/status.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// Whole CPUs that a quota pays for, rounded up: 1 or more.  `text` is cpu.max of version 2, "QUOTA
// PERIOD" in us, or cfs_quota_us and cfs_period_us of version 1 with a blank between them.  nullopt
// for no limit ("max", -1) and for what the kernel does not write.
std::optional<std::int64_t> ParseCpuQuota(std::string_view text);

// The folders whose limits bind a process, its own first, then those above.  `membership` is the
// text of /proc/self/cgroup and `root` where the hierarchies are mounted; `controller` is "cpu".  A
// container sees paths of the host there, so a folder need not exist.
std::vector<std::string> CgroupFolders(const std::string& root, std::string_view membership,
                                       std::string_view controller);

// The smallest quota of these folders in CPUs; nullopt where none has one.
std::optional<std::int64_t> SmallestCpuQuota(const std::vector<std::string>& folders);

struct UsableCpus {
  std::int64_t affinity;              // CPUs that the calling thread may run on; > 0
  std::optional<std::int64_t> quota;  // CPUs that the control groups pay for; nullopt: no limit

  std::int64_t count() const { return quota && *quota < affinity ? *quota : affinity; }
};

UsableCpus CountUsableCpus();

// The value in bytes of a "NAME: N kB" line of /proc/meminfo or a "NAME N" line of memory.stat;
// nullopt where there is no such line.
std::optional<std::int64_t> FindMemoryLine(std::string_view text, std::string_view name);

// A limit of memory in bytes and what it leaves.
struct MemoryLeft {
  std::int64_t limit;
  std::int64_t left;
};

// Of the memory limits of these folders that which leaves least, their page cache counted as free;
// nullopt where none has a limit.
std::optional<MemoryLeft> SmallestMemoryLeft(const std::vector<std::string>& folders);

// Descriptors that the process may have open, once as many are asked for as an administrator lets
// it have: the hard limit.
std::int64_t RaiseDescriptorLimit();

// Bytes that the process can take without swapping, and what sets that bound: "RAM", "cgroup
// limit", "address-space limit" (ulimit -v) or "data limit" (ulimit -d), the least of them.
struct AvailableMemory {
  std::int64_t bytes;
  std::string_view bound;  // a constant
  std::int64_t taken;      // of a limit, by what runs under it already; 0 for RAM
};
AvailableMemory FindAvailableMemory();

// Keeps malloc to one arena where an address-space limit binds: each further one reserves 64 MB of
// it, which the stacks of threads need.  Before the process has threads.
void SaveAddressSpace();

// From now on malloc gives blocks of a megabyte and more back as they are freed.  By itself it
// begins to keep those that it has seen freed, and a server would hold the largest messages that it
// ever read, once for each thread.
void GiveLargeBlocksBack();

// Gives the pages of smaller blocks back that malloc holds free, between those in use too: after a
// burst of calls they are tens of megabytes, for good.  Who allocates meanwhile waits for some
// milliseconds: call it every few seconds at most.
void GiveFreePagesBack();

// FAILED_PRECONDITION where the limit of stacks (ulimit -s), of which each thread gets as much, is
// less than any of them was tried with.
Status CheckStackLimit();

// Starts so many threads at once and ends them again.  FAILED_PRECONDITION with how many there
// could be: limits of processes, of a container's tasks or of address space are no surprise later.
Status ProbeThreads(std::int64_t threads);

}  // namespace dsa
