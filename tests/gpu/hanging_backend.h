// A CudaBackend on which the kernels of some step never end.
#pragma once

#include "kernels/backend.h"

namespace dsa::testing {

// One for the process; made at the first call.  After as many steps as FailingBackend.
Backend& HangingBackend();

}  // namespace dsa::testing
