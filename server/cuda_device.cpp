#include "server/cuda_device.h"

#include "kernels/cuda/cuda_backend.h"

#include <utility>

namespace dsa {

Result<std::unique_ptr<Backend>> MakeCudaBackend(int index) {
  DSA_ASSIGN_OR_RETURN(std::unique_ptr<CudaBackend> backend, CudaBackend::Make(index));
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace dsa
