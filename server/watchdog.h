// Sees that the server's threads get on.  A part is stalled when it has work and does none of it
// for longer than its limit, told in ticks of the watchdog itself: a process that was stopped, or a
// machine that slept, does not count.  Owns a thread.
#pragma once

#include "common/status.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// What a part says of itself: reads atomics, waits for nothing.
struct Activity {
  std::int64_t done;         // changes with every piece of work
  bool waiting;              // there is work that is not done
  std::int64_t estimate_us;  // what the piece at hand should take; 0: unknown
};

struct WatchedPart {
  std::string_view name;
  std::function<Activity()> read;
  bool vital;  // the process is lost without it
};

class Watchdog final {
 public:
  struct Options {
    std::chrono::microseconds tick{100'000};
    std::chrono::microseconds limit{60'000'000};  // at least; otherwise ten times the estimate
    // Whether some part is stalled; called when that changes, by the watchdog's thread.
    std::function<void(bool stalled)> on_change;
    // A vital part is; called once, by the watchdog's thread.  EndStalledProcess, but in tests.
    std::function<void()> on_lost;
  };

  // FAILED_PRECONDITION where no thread can be started.
  static Result<std::unique_ptr<Watchdog>> Start(std::vector<WatchedPart> parts, Options options);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  struct State;
  explicit Watchdog(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Ends with exit code 5 and no more than what the log has: other threads may hold any lock.
[[noreturn]] void EndStalledProcess();

}  // namespace dsa
