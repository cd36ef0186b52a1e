// Bytes of answers that wait for their clients to read them, of all calls together.  Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

namespace dsa {

// By default: three answers as large as may be.
inline constexpr std::int64_t kAnswerBytesMax = std::int64_t{64} << 20;

class AnswerBudget final {
 public:
  // Smaller answers count for nothing: the number of calls bounds them.
  static constexpr std::int64_t kSmallBytesMax = std::int64_t{16} << 10;

  // False, and nothing taken, where an answer of so many bytes has no room.
  bool Take(std::int64_t bytes, std::int64_t bytes_max) {
    if (bytes <= kSmallBytesMax) {
      return true;
    }
    if (bytes_.fetch_add(bytes, std::memory_order_relaxed) + bytes <= bytes_max) {
      return true;
    }
    Give(bytes);
    return false;
  }

  // What was taken.
  void Give(std::int64_t bytes) {
    bytes_.fetch_sub(bytes > kSmallBytesMax ? bytes : 0, std::memory_order_relaxed);
  }

 private:
  std::atomic<std::int64_t> bytes_{0};  // a count that orders nothing
};

}  // namespace dsa
