// The devices that a whole model runs on, by the name that --device takes.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "kernels/comm/thread_group.h"
#include "model/rank_shape.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

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

// A backend for each rank of a model, and what they meet in; null where there is one rank.
struct RankBackends {
  std::unique_ptr<ThreadGroup> group;
  std::vector<std::unique_ptr<Backend>> backends;
  std::string collectives{};  // what ranks on CUDA meet in, for people; else empty
};

// As MakeBackend, of one device for each rank; INVALID_ARGUMENT where `device` names another number
// of them.  `collectives` is of ranks on CUDA: cuda_device.h.  On the CPU several ranks share the
// threads, at least one each.  Each data rank is a part of the group.
Result<RankBackends> MakeRankBackends(const std::string& device, std::int64_t threads,
                                      const RankLayout& layout, const std::string& collectives);

}  // namespace dsa
