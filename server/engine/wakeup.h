// Lets one thread sleep until another has something for it.  Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace dsa {

class Wakeup final {
 public:
  Wakeup() = default;
  Wakeup(const Wakeup&) = delete;
  Wakeup& operator=(const Wakeup&) = delete;

  // A call before Wait is not lost: the next Wait returns at once.
  void Notify() {
    {
      const std::lock_guard lock(mutex_);
      notified_ = true;
    }
    condition_.notify_one();
  }

  void Wait() {
    std::unique_lock lock(mutex_);
    condition_.wait(lock, [this] { return notified_; });
    notified_ = false;
  }

  void WaitFor(std::chrono::microseconds limit) {
    std::unique_lock lock(mutex_);
    condition_.wait_for(lock, limit, [this] { return notified_; });
    notified_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool notified_ = false;  // guarded by mutex_
};

}  // namespace dsa
