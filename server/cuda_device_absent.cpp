#include "server/cuda_device.h"

namespace dsa {

namespace {

Error Absent() {
  return {ErrorCode::kFailedPrecondition,
          "this build of dsa has the CPU backend only; the preset cuda builds one with both"};
}

}  // namespace

Result<std::unique_ptr<Backend>> MakeCudaBackend(int /*index*/) {
  return Absent();
}

Result<std::vector<std::unique_ptr<Backend>>> MakeCudaRanks(std::span<const int> /*indices*/,
                                                            ThreadGroup& /*group*/) {
  return Absent();
}

}  // namespace dsa
