#include "kernels/cuda/device_check.h"

#include "kernels/cuda/launch.h"

#include <string>

#include <cuda_runtime_api.h>

namespace dsa::cuda {
namespace {

// 13000 is "13.0".
std::string VersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

Status CheckDriverVersion(int version) {
  if (version == 0) {
    return Error{ErrorCode::kFailedPrecondition, "no NVIDIA driver found, needed is one for CUDA " +
                                                     VersionText(CUDART_VERSION) +
                                                     " and a Hopper GPU"};
  }
  if (version < CUDART_VERSION) {
    return Error{ErrorCode::kFailedPrecondition, "the driver is made for CUDA " +
                                                     VersionText(version) + ", needed is " +
                                                     VersionText(CUDART_VERSION)};
  }
  return {};
}

Status CheckArchitecture(std::string_view device_name, int major, int minor) {
  if (major == 9 && minor == 0) {
    return {};
  }
  return Error{ErrorCode::kFailedPrecondition,
               std::string(device_name) + " has compute capability " + std::to_string(major) + "." +
                   std::to_string(minor) + ", needed is 9.0 (Hopper)"};
}

Status CheckMultiprocessors(std::string_view device_name, int multiprocessors) {
  if (multiprocessors >= kMultiprocessors) {
    return {};
  }
  return Error{ErrorCode::kFailedPrecondition,
               std::string(device_name) + " has " + std::to_string(multiprocessors) +
                   " multiprocessors, needed are " + std::to_string(kMultiprocessors) +
                   " (H100 SXM, H200; no MIG instance)"};
}

}  // namespace dsa::cuda
