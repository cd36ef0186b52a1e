#include "server/devices.h"

#include "common/machine.h"
#include "kernels/cpu/cpu_backend.h"

#include <fmt/core.h>

namespace dsa {

CpuThreads ChooseCpuThreads(std::int64_t configured) {
  if (configured > 0) {
    return {.count = configured, .reason = "configured"};
  }
  const UsableCpus cpus = CountUsableCpus();
  return {.count = cpus.count(),
          .reason = cpus.quota ? fmt::format("affinity {}, quota {}", cpus.affinity, *cpus.quota)
                               : fmt::format("affinity {}, no quota", cpus.affinity)};
}

Result<std::unique_ptr<Backend>> MakeBackend(const std::string& device, std::int64_t threads) {
  if (device != "cpu") {
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("device: \"{}\" cannot run a model yet: only \"cpu\" can", device)};
  }
  return std::unique_ptr<Backend>(
      std::make_unique<CpuBackend>(static_cast<int>(ChooseCpuThreads(threads).count)));
}

}  // namespace dsa
