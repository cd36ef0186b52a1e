// The CUDA backend as far as this binary has it: cuda_device.cpp where it was built with CUDA,
// cuda_device_absent.cpp where it was not.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "kernels/comm/thread_group.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// CUDA device `index`.  FAILED_PRECONDITION with one line that says what is missing, found and
// needed: the backend itself, a driver, a device, a Hopper GPU, cuBLASLt.
Result<std::unique_ptr<Backend>> MakeCudaBackend(int index);

// Scratch of kernels on a GPU, one of several data ranks' or not; needs no GPU.  Absent where this
// binary has no CUDA.
std::optional<std::int64_t> CudaScratch(const ScratchLimits& limits, bool has_data_ranks);

struct CudaRanks {
  std::vector<std::unique_ptr<Backend>> backends;
  std::string collectives;  // for people: "peer memory", "NCCL 2.28.9"
};

// A backend on each of these devices, rank by rank, joined to `group`, which outlives them.
// `collectives` is that of the configuration.  Error as above, or where one does not see another
// one's memory or NCCL cannot be used, as far as that is needed; it names the device.
Result<CudaRanks> MakeCudaRanks(std::span<const int> indices, std::string_view collectives,
                                ThreadGroup& group);

}  // namespace dsa
