// What a launch does once on every device that it comes to: attributes of a kernel belong to the
// device that was current when they were set, and ranks have a device each.  For kernels/cuda/
// only.
#pragma once

#include "kernels/cuda/launch.h"

#include <atomic>
#include <cstdint>

namespace dsa::cuda {

// A static of the launching function.  Any thread.
class PerDevice final {
 public:
  // set() returns a cudaError_t; two threads may both call it for the same device.
  template <typename Set>
  void Once(const Set& set) {
    int device = 0;
    DSA_CUDA_CHECK(cudaGetDevice(&device));
    const std::uint64_t bit = std::uint64_t{1} << static_cast<unsigned>(device % kDevices);
    if ((done_.load(std::memory_order_acquire) & bit) == 0) {  // with the release below
      DSA_CUDA_CHECK(set());
      done_.fetch_or(bit, std::memory_order_release);
    }
  }

 private:
  static constexpr int kDevices = 64;
  std::atomic<std::uint64_t> done_ = 0;
};

}  // namespace dsa::cuda
