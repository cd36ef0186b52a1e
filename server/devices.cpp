#include "server/devices.h"

#include "common/machine.h"
#include "kernels/cpu/cpu_backend.h"
#include "server/cuda_device.h"
#include "server/device_name.h"

#include <algorithm>
#include <optional>
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
  if (name->indices.size() > 1) {
    return InvalidArgument(fmt::format("device: \"{}\" names {} devices, one runs this", device,
                                       name->indices.size()));
  }
  Result<std::unique_ptr<Backend>> backend = MakeCudaBackend(CudaIndices(*name, 1).front());
  if (!backend.ok()) {
    return Error{backend.error().code,
                 fmt::format("device: \"{}\": {}", device, backend.error().message)};
  }
  return backend;
}

namespace {

Status MakeRanksOnCuda(const DeviceName& name, const std::string& device,
                       const std::string& collectives, RankBackends& made) {
  const std::int64_t ranks = made.group->ranks();
  const std::vector<int> indices = CudaIndices(name, ranks);
  if (static_cast<std::int64_t>(indices.size()) != ranks) {
    return InvalidArgument(fmt::format("device: \"{}\" names {} devices, there are {} ranks",
                                       device, indices.size(), ranks));
  }
  Result<CudaRanks> ranks_on = MakeCudaRanks(indices, collectives, *made.group);
  if (!ranks_on.ok()) {
    return Error{ranks_on.error().code,
                 fmt::format("device: \"{}\": {}", device, ranks_on.error().message)};
  }
  made.backends = std::move(ranks_on.value().backends);
  made.collectives = ranks_on.value().collectives;
  return {};
}

}  // namespace

Result<RankBackends> MakeRankBackends(const std::string& device, std::int64_t threads,
                                      const RankLayout& layout, const std::string& collectives) {
  const std::int64_t ranks = layout.all_ranks();
  RankBackends made;
  if (ranks == 1) {
    DSA_ASSIGN_OR_RETURN(std::unique_ptr<Backend> only, MakeBackend(device, threads));
    made.backends.push_back(std::move(only));
    return made;
  }
  const std::optional<DeviceName> name = ParseDevice(device);
  if (!name) {
    return InvalidArgument(fmt::format("device: \"{}\" is not one of {}", device, kDeviceNames));
  }
  made.group =
      std::make_unique<ThreadGroup>(static_cast<int>(ranks), static_cast<int>(layout.data_ranks));
  if (name->kind == DeviceKind::kCuda) {
    DSA_RETURN_IF_ERROR(MakeRanksOnCuda(*name, device, collectives, made));
    return made;
  }
  const std::int64_t each = std::max<std::int64_t>(1, ChooseCpuThreads(threads).count / ranks);
  for (int rank = 0; rank < static_cast<int>(ranks); ++rank) {
    made.backends.push_back(std::make_unique<CpuBackend>(
        static_cast<int>(each), CpuSeat{.group = made.group.get(), .rank = rank}));
  }
  return made;
}

}  // namespace dsa
