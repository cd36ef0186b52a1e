#include "kernels/cuda/launch.h"

#include "kernels/device_failure.h"

#include <string>

namespace dsa::cuda {

void CallFailed(const char* error, const char* file, int line) {
  DeviceFailed(std::string(error) + " (" + file + ":" + std::to_string(line) + ")");
}

}  // namespace dsa::cuda
