// Memory that a backend has given out, and its owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace dsa {

class Backend;

enum class MemoryKind : std::uint8_t { kDevice, kHost };

// Memory of a backend, freed with its owner.  Must not outlive its backend.
template <MemoryKind kKind>
class BackendBuffer final {
 public:
  BackendBuffer() = default;
  BackendBuffer(Backend* backend, void* data, std::size_t bytes)
      : backend_(backend), data_(data), bytes_(bytes) {}
  BackendBuffer(BackendBuffer&& other) noexcept { *this = static_cast<BackendBuffer&&>(other); }
  BackendBuffer& operator=(BackendBuffer&& other) noexcept {
    if (this != &other) {
      Reset();
      backend_ = std::exchange(other.backend_, nullptr);
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
  }
  BackendBuffer(const BackendBuffer&) = delete;
  BackendBuffer& operator=(const BackendBuffer&) = delete;
  ~BackendBuffer() { Reset(); }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }

 private:
  void Reset();

  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};
using DeviceBuffer = BackendBuffer<MemoryKind::kDevice>;
// What the device reads and writes by itself while the host goes on: pinned on CUDA.
using HostBuffer = BackendBuffer<MemoryKind::kHost>;

}  // namespace dsa
