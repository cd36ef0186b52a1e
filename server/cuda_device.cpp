#include "server/cuda_device.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/nccl.h"
#include "kernels/cuda/scratch_bytes.h"

#include <utility>

#include <fmt/core.h>

namespace dsa {

Result<std::unique_ptr<Backend>> MakeCudaBackend(int index) {
  DSA_ASSIGN_OR_RETURN(std::unique_ptr<CudaBackend> backend, CudaBackend::Make(index));
  return std::unique_ptr<Backend>(std::move(backend));
}

std::optional<std::int64_t> CudaScratch(const ScratchLimits& limits, bool has_data_ranks) {
  return CudaScratchBytes(limits, has_data_ranks);
}

namespace {

// Returns what they are joined through.
Result<std::string> Join(std::span<CudaBackend* const> ranks, std::string_view collectives,
                         ThreadGroup& group) {
  const Status access = CudaBackend::CheckPeerAccess(ranks);
  const bool exchanges = group.parts() > 1;  // in memory that all see
  if (exchanges || collectives == "peer" || (collectives == "auto" && access.ok())) {
    DSA_RETURN_IF_ERROR(CudaBackend::JoinPeers(ranks, group));
    return std::string("peer memory");
  }
  const Status joined = CudaBackend::JoinNccl(ranks, group);
  if (!joined.ok()) {
    return Error{joined.error().code,
                 collectives == "nccl"
                     ? joined.error().message
                     : fmt::format("{}, and {}", access.error().message, joined.error().message)};
  }
  return "NCCL " + cuda::NcclVersionText(cuda::LoadNccl().value().version);
}

}  // namespace

Result<CudaRanks> MakeCudaRanks(std::span<const int> indices, std::string_view collectives,
                                ThreadGroup& group) {
  CudaRanks made;
  std::vector<CudaBackend*> ranks;
  for (const int index : indices) {
    Result<std::unique_ptr<CudaBackend>> backend = CudaBackend::Make(index);
    if (!backend.ok()) {
      return Error{backend.error().code, fmt::format("rank {} on CUDA device {}: {}", ranks.size(),
                                                     index, backend.error().message)};
    }
    ranks.push_back(backend.value().get());
    made.backends.push_back(std::move(backend).value());
  }
  DSA_ASSIGN_OR_RETURN(made.collectives, Join(ranks, collectives, group));
  return made;
}

}  // namespace dsa
