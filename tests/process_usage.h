// What a process takes, as /proc tells it.
#pragma once

#include <cstdint>
#include <string_view>

#include <sys/types.h>

namespace dsa::testing {

// A line of /proc/PID/status, such as VmRSS, in bytes, or Threads, a number; 0 where the process
// has ended.
std::int64_t ProcessStatus(pid_t process, std::string_view name);

// Processor time that it has used so far; 0 where it has ended.
std::int64_t ProcessorUs(pid_t process);

}  // namespace dsa::testing
