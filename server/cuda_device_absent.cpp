#include "server/cuda_device.h"

namespace dsa {

Result<std::unique_ptr<Backend>> MakeCudaBackend(int /*index*/) {
  return Error{ErrorCode::kFailedPrecondition,
               "this build of dsa has the CPU backend only; the preset cuda builds one with both"};
}

}  // namespace dsa
