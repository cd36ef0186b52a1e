// Injected time.  Only monotonic time exists for deadlines and durations; wall-clock time is for
// logs.  Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>

namespace dsa {

// Microseconds since an arbitrary origin; never goes back.
using MonotonicUs = std::int64_t;

class Clock {
 public:
  Clock() = default;
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;
  virtual ~Clock() = default;
  virtual MonotonicUs NowUs() const = 0;
};

class SteadyClock final : public Clock {
 public:
  MonotonicUs NowUs() const override {
    return std::chrono::duration_cast<std::chrono::microseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
};

}  // namespace dsa
