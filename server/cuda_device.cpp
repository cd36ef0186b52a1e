#include "server/cuda_device.h"

#include "kernels/cuda/cuda_backend.h"

#include <utility>

#include <fmt/core.h>

namespace dsa {

Result<std::unique_ptr<Backend>> MakeCudaBackend(int index) {
  DSA_ASSIGN_OR_RETURN(std::unique_ptr<CudaBackend> backend, CudaBackend::Make(index));
  return std::unique_ptr<Backend>(std::move(backend));
}

Result<std::vector<std::unique_ptr<Backend>>> MakeCudaRanks(std::span<const int> indices,
                                                            ThreadGroup& group) {
  std::vector<std::unique_ptr<Backend>> made;
  std::vector<CudaBackend*> ranks;
  for (const int index : indices) {
    Result<std::unique_ptr<CudaBackend>> backend = CudaBackend::Make(index);
    if (!backend.ok()) {
      return Error{backend.error().code, fmt::format("rank {} on CUDA device {}: {}", ranks.size(),
                                                     index, backend.error().message)};
    }
    ranks.push_back(backend.value().get());
    made.push_back(std::move(backend).value());
  }
  DSA_RETURN_IF_ERROR(CudaBackend::JoinPeers(ranks, group));
  return made;
}

}  // namespace dsa
