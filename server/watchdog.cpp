#include "server/watchdog.h"

#include "common/log.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include <fmt/core.h>
#include <unistd.h>

namespace dsa {
namespace {

constexpr std::int64_t kEstimates = 10;

}  // namespace

struct Watchdog::State {
  struct Watch {
    WatchedPart part;
    std::int64_t done = 0;   // at the last tick
    std::int64_t ticks = 0;  // without progress
    bool stalled = false;
  };

  State(std::vector<WatchedPart> parts, Options given) : options(std::move(given)) {
    for (WatchedPart& part : parts) {
      watches.push_back({.part = std::move(part)});
    }
  }

  void Run();
  void Look(Watch& watch) const;

  const Options options;
  std::vector<Watch> watches;  // the watchdog's thread

  std::mutex mutex;
  std::condition_variable changed;
  bool stopping = false;  // guarded by mutex
  std::thread thread;
};

void Watchdog::State::Run() {
  bool told = false;
  std::unique_lock lock(mutex);
  while (!changed.wait_for(lock, options.tick, [this] { return stopping; })) {
    lock.unlock();
    bool lost = false;
    bool stalled = false;
    for (Watch& watch : watches) {
      Look(watch);
      stalled = stalled || watch.stalled;
      lost = lost || (watch.stalled && watch.part.vital);
    }
    if (std::exchange(told, stalled) != stalled) {
      options.on_change(stalled);
    }
    if (lost) {
      options.on_lost();
      return;
    }
    lock.lock();
  }
}

void Watchdog::State::Look(Watch& watch) const {
  const Activity now = watch.part.read();
  const bool gets_on = !now.waiting || now.done != watch.done;
  watch.done = now.done;
  watch.ticks = gets_on ? 0 : watch.ticks + 1;
  const std::int64_t limit_us = std::max(options.limit.count(), kEstimates * now.estimate_us);
  const bool stalled = watch.ticks * options.tick.count() >= limit_us;
  if (std::exchange(watch.stalled, stalled) == stalled) {
    return;
  }
  constexpr std::int64_t kUsPerMs = 1000;
  if (stalled) {
    Log(LogLevel::kError, "stalled: there is work, and none of it gets done",
        {{"part", watch.part.name},
         {"limit_ms", limit_us / kUsPerMs},
         {"estimate_ms", now.estimate_us / kUsPerMs},
         {"done", now.done}});
  } else {
    Log(LogLevel::kInfo, "no longer stalled", {{"part", watch.part.name}});
  }
}

Result<std::unique_ptr<Watchdog>> Watchdog::Start(std::vector<WatchedPart> parts, Options options) {
  auto state = std::make_unique<State>(std::move(parts), std::move(options));
  try {
    state->thread = std::thread([&running = *state] { running.Run(); });
  } catch (const std::system_error& error) {
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("the watchdog's thread cannot be started: {}", error.what())};
  }
  return std::unique_ptr<Watchdog>(new Watchdog(std::move(state)));
}

Watchdog::Watchdog(std::unique_ptr<State> state) : state_(std::move(state)) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
}

void EndStalledProcess() {
  constexpr int kStalled = 5;
  FlushLog();
  _exit(kStalled);
}

}  // namespace dsa
