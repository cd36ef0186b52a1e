// The place in which bodies that are large are read, one at a time: a client that sends without end
// then costs one body of memory, and one client's worth of copying, however many they are.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

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

// A connection's hold on it.  One thread.
class LargeBodyPlace final {
 public:
  explicit LargeBodyPlace(LargeBodies& bodies) : bodies_(bodies) {}

  bool is_none() const { return state_ == State::kNone; }
  bool is_awaited() const { return state_ == State::kAwaited; }

  // `granted` as LargeBodies has it; BeGranted follows it.
  void Take(std::function<bool()> granted) {
    state_ = bodies_.Take(std::move(granted)) ? State::kTaken : State::kAwaited;
  }
  void BeGranted() { state_ = State::kTaken; }

  // Nothing where it is not taken: who awaits it still has its turn.
  void Give() {
    if (state_ == State::kTaken) {
      state_ = State::kNone;
      bodies_.Give();
    }
  }

 private:
  enum class State : std::uint8_t { kNone, kAwaited, kTaken };
  LargeBodies& bodies_;
  State state_ = State::kNone;
};

}  // namespace dsa
