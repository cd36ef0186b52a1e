// The devices that a whole model runs on, by the name that --device takes.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"

#include <cstdint>
#include <memory>
#include <string>

namespace dsa {

// How many threads the CPU backend gets, and why, for the log: "configured", or "affinity
// 3, quota 2".
struct CpuThreads {
  std::int64_t count;
  std::string reason;
};

// `configured` of the configuration; 0: one for every CPU that the process may use.
CpuThreads ChooseCpuThreads(std::int64_t configured);

// `device` as ParseDevice takes it; `threads` of a CPU, 0: as ChooseCpuThreads.  INVALID_ARGUMENT
// for another name, FAILED_PRECONDITION for a device that this program cannot use or this machine
// has not: one line with what was found and what is needed.
Result<std::unique_ptr<Backend>> MakeBackend(const std::string& device, std::int64_t threads);

}  // namespace dsa
