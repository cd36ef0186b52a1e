// When steps end, how long they take and whether they fail, as a test says.  Plugged into a
// ScriptedExecutor behind the real engine, so that what depends on time is quick and certain:
//
//   executor.on_execute = [&](const ForwardBatch& batch) {
//     executor.faulty_row = steps.Enter(batch.tokens);
//   };
//
// Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

namespace dsa::testing {

class StepControl final {
 public:
  // Engine thread: a step of so many rows begins; returns when it may end.  The row that is faulty,
  // or -1.
  std::int64_t Enter(std::int64_t rows) {
    std::unique_lock lock(mutex_);
    ++begun_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !held_ || passes_ > 0; });
    passes_ -= held_ ? 1 : 0;
    const std::chrono::microseconds duration = duration_ + rows * row_duration_;
    durations_.push_back(duration);
    if (duration.count() > 0) {
      changed_.wait_for(lock, duration, [this] { return released_; });
    }
    return faulty_row_;
  }

  // Steps do not end any more, the one that runs included ...
  void Hold() {
    const std::lock_guard lock(mutex_);
    held_ = true;
    passes_ = 0;
  }
  // ... but so many ...
  void LetPass(std::int64_t steps) {
    const std::lock_guard lock(mutex_);
    passes_ += steps;
    changed_.notify_all();
  }
  // ... until now.
  void Resume() {
    const std::lock_guard lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }
  // For good, and whatever a step takes: so that the engine can be stopped.
  void Release() {
    const std::lock_guard lock(mutex_);
    held_ = false;
    released_ = true;
    changed_.notify_all();
  }

  // What every step takes that begins from now on.
  void SetDuration(std::chrono::microseconds duration) {
    const std::lock_guard lock(mutex_);
    duration_ = duration;
  }
  // And each of its rows.
  void SetRowDuration(std::chrono::microseconds duration) {
    const std::lock_guard lock(mutex_);
    row_duration_ = duration;
  }
  // The row of a batch whose scores are not finite, in every step that ends from now on; -1: none.
  void FailRow(std::int64_t row) {
    const std::lock_guard lock(mutex_);
    faulty_row_ = row;
  }

  // Steps that have begun.
  std::int64_t begun() const {
    const std::lock_guard lock(mutex_);
    return begun_;
  }
  // What each of them takes by the above, however long this machine takes for it.
  std::vector<std::chrono::microseconds> durations() const {
    const std::lock_guard lock(mutex_);
    return durations_;
  }
  // Waits until step `number`, from 1, has begun; false after 20 s.
  bool WaitForStep(std::int64_t number) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return begun_ >= number; });
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  // Guarded by mutex_:
  bool held_ = false;
  bool released_ = false;
  std::int64_t passes_ = 0;  // steps that may end although steps are held
  std::int64_t begun_ = 0;
  std::int64_t faulty_row_ = -1;
  std::chrono::microseconds duration_{0};
  std::chrono::microseconds row_duration_{0};
  std::vector<std::chrono::microseconds> durations_;
};

}  // namespace dsa::testing
