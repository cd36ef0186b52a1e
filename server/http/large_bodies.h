// The place in which bodies that are large are read, one at a time: a client that sends without end
// then costs one body of memory, and one client's worth of copying, however many they are.
#pragma once

#include <deque>
#include <functional>
#include <mutex>

namespace dsa {

// Any thread.
class LargeBodies final {
 public:
  // Whether the caller has the place.  Otherwise `granted` is called, by whoever gives it back,
  // once it is the caller's turn; false from it says that the caller is gone, and the next has its
  // turn.
  bool Take(std::function<bool()> granted) {
    const std::lock_guard lock(mutex_);
    if (is_taken_) {
      waiting_.push_back(std::move(granted));
      return false;
    }
    is_taken_ = true;
    return true;
  }

  void Give() {
    std::unique_lock lock(mutex_);
    while (!waiting_.empty()) {
      const std::function<bool()> granted = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      if (granted()) {
        return;
      }
      lock.lock();
    }
    is_taken_ = false;
  }

 private:
  std::mutex mutex_;
  bool is_taken_ = false;
  std::deque<std::function<bool()>> waiting_;
};

}  // namespace dsa
