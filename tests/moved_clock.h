// The machine's time, and what a test adds to it: limits of minutes pass at once, and none passes
// because the machine is slow.  Thread-safe.
#pragma once

#include "common/clock.h"

#include <atomic>
#include <chrono>
#include <cstdint>

namespace dsa::testing {

class MovedClock final : public Clock {
 public:
  MonotonicUs NowUs() const override { return steady_.NowUs() + moved_us_.load(); }
  void Move(std::chrono::microseconds by) { moved_us_ += by.count(); }

 private:
  const SteadyClock steady_{};
  std::atomic<std::int64_t> moved_us_{0};
};

}  // namespace dsa::testing
