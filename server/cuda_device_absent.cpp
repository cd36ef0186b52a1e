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

std::optional<std::int64_t> CudaScratch(const ScratchLimits& /*limits*/, bool /*has_data_ranks*/) {
  return std::nullopt;
}

Result<CudaRanks> MakeCudaRanks(std::span<const int> /*indices*/, std::string_view /*collectives*/,
                                ThreadGroup& /*group*/) {
  return Absent();
}

}  // namespace dsa
