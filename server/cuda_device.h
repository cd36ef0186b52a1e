// The CUDA backend as far as this binary has it: cuda_device.cpp where it was built with CUDA,
// cuda_device_absent.cpp where it was not.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"

#include <memory>

namespace dsa {

// CUDA device `index`.  FAILED_PRECONDITION with one line that says what is missing, found and
// needed: the backend itself, a driver, a device, a Hopper GPU, cuBLASLt.
Result<std::unique_ptr<Backend>> MakeCudaBackend(int index);

}  // namespace dsa
