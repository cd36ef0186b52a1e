// Scratch of the operators: one piece of device memory that every op cuts up for itself.
//
// An op's scratch is dead when its last kernel has run, and ops run in order on one stream, so all
// share one piece, as large as the largest of them needs.  An op has one function that takes its
// regions; run over no memory, it measures.
#pragma once

#include "common/check.h"
#include "kernels/backend_buffer.h"
#include "kernels/cuda/launch.h"
#include "kernels/scratch_limits.h"

#include <cstdint>
#include <string_view>

namespace dsa::cuda {

class ScratchArena final {
 public:
  // Measures: Take returns null.
  ScratchArena() = default;
  explicit ScratchArena(const DeviceBuffer& memory)
      : base_(memory.As<std::uint8_t>()), bytes_(static_cast<std::int64_t>(memory.bytes())) {}

  template <typename T>
  T* Take(std::int64_t count) {
    constexpr std::int64_t kAlignment = 256;
    std::uint8_t* const taken = base_ == nullptr ? nullptr : base_ + used_;
    used_ +=
        (count * static_cast<std::int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(taken);
  }

  std::int64_t used() const { return used_; }
  // CHECK-fails where more was taken than was reserved.
  void CheckFits(std::string_view op) const {
    DSA_CHECK(used_ <= bytes_, "{}: {} bytes of scratch needed, {} reserved", op, used_, bytes_);
  }

 private:
  std::uint8_t* base_ = nullptr;
  std::int64_t bytes_ = 0;
  std::int64_t used_ = 0;
};

// What each op takes at most.
std::int64_t GateScratchBytes(const ScratchLimits& limits);
std::int64_t RoutedExpertsScratchBytes(const ScratchLimits& limits);
std::int64_t LatentAttentionScratchBytes(const ScratchLimits& limits);
std::int64_t MaskedAttentionScratchBytes(const ScratchLimits& limits);
std::int64_t SelectKeysScratchBytes(const ScratchLimits& limits);
// Beside the arena: what must stay as the last op left it.
inline constexpr std::int64_t kAttentionCounterBytes = std::int64_t{2} * kMultiprocessors * 4;

}  // namespace dsa::cuda
