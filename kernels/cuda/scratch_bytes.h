// What CudaBackend::ReserveScratch takes of a device, known without one.
#pragma once

#include "kernels/backend.h"

#include <cstdint>

namespace dsa {

// `has_data_ranks`: the backend is of a group in parts (kernels/comm/thread_group.h).
std::int64_t CudaScratchBytes(const ScratchLimits& limits, bool has_data_ranks);

}  // namespace dsa
