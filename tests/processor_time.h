// What work costs this process: a machine that does other things as well, or stands still for a
// while, changes nothing of it.
#pragma once

#include "common/clock.h"

#include <ctime>

namespace dsa::testing {

// Processor seconds that all threads of this process have used so far.
inline double ProcessorSeconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Those of all threads while `work` runs.
template <typename Work>
double ProcessorSecondsOf(const Work& work) {
  const double before = ProcessorSeconds();
  work();
  return ProcessorSeconds() - before;
}

// Time that passes while this process works.
class ProcessorClock final : public Clock {
 public:
  MonotonicUs NowUs() const override {
    constexpr double kUsPerSecond = 1e6;
    return static_cast<MonotonicUs>(ProcessorSeconds() * kUsPerSecond);
  }
};

}  // namespace dsa::testing
