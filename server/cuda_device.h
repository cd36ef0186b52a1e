// The CUDA backend as far as this binary has it: cuda_device.cpp where it was built with CUDA,
// cuda_device_absent.cpp where it was not.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "kernels/comm/thread_group.h"

#include <memory>
#include <span>
#include <vector>

namespace dsa {

// CUDA device `index`.  FAILED_PRECONDITION with one line that says what is missing, found and
// needed: the backend itself, a driver, a device, a Hopper GPU, cuBLASLt.
Result<std::unique_ptr<Backend>> MakeCudaBackend(int index);

// A backend on each of these devices, rank by rank, joined to `group`, which outlives them.  Error
// as above, or where one does not see another one's memory; it names the device.
Result<std::vector<std::unique_ptr<Backend>>> MakeCudaRanks(std::span<const int> indices,
                                                            ThreadGroup& group);

}  // namespace dsa
