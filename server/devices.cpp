#include "server/devices.h"

#include "common/check.h"
#include "common/machine.h"
#include "kernels/cpu/cpu_backend.h"
#include "server/cuda_device.h"
#include "server/device_name.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

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
  const std::optional<DeviceName> name = ParseDevice(device);
  if (!name) {
    return InvalidArgument(fmt::format("device: \"{}\" is not one of {}", device, kDeviceNames));
  }
  if (name->kind == DeviceKind::kCpu) {
    return std::unique_ptr<Backend>(
        std::make_unique<CpuBackend>(static_cast<int>(ChooseCpuThreads(threads).count)));
  }
  Result<std::unique_ptr<Backend>> backend = MakeCudaBackend(name->index);
  if (!backend.ok()) {
    return Error{backend.error().code,
                 fmt::format("device: \"{}\": {}", device, backend.error().message)};
  }
  return backend;
}

Result<RankBackends> MakeRankBackends(const std::string& device, std::int64_t threads,
                                      std::int64_t ranks) {
  RankBackends made;
  if (ranks == 1) {
    DSA_ASSIGN_OR_RETURN(std::unique_ptr<Backend> only, MakeBackend(device, threads));
    made.backends.push_back(std::move(only));
    return made;
  }
  DSA_CHECK(device == "cpu", "MakeRankBackends: {} ranks on {}", ranks, std::string_view(device));
  const std::int64_t each = std::max<std::int64_t>(1, ChooseCpuThreads(threads).count / ranks);
  made.group = std::make_unique<ThreadGroup>(static_cast<int>(ranks));
  for (int rank = 0; rank < static_cast<int>(ranks); ++rank) {
    made.backends.push_back(std::make_unique<CpuBackend>(
        static_cast<int>(each), CpuSeat{.group = made.group.get(), .rank = rank}));
  }
  return made;
}

}  // namespace dsa
