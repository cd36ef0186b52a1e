// A backend whose device fails for good after some steps, and the model to serve on it: one source
// for the CPU, where the failure is only said, one for CUDA, where a kernel really traps.
#pragma once

#include "kernels/backend.h"

#include <string>

namespace dsa::testing {

inline constexpr int kStepsBeforeFailure = 24;

// One for the process; made at the first call.
Backend& FailingBackend();
std::string FailingModel();

}  // namespace dsa::testing
