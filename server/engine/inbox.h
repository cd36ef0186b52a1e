// Requests on their way to the engine: bounded, many producers, one consumer.
//
// A mutex, not a lock-free queue: a producer has just hashed a prompt, so the lock is held for a
// pointer's move once a request; the engine takes everything with one swap, and takes no lock at
// all while an atomic counter says that there is nothing (docs/decisions/0003-inbox.md).
#pragma once

#include "server/engine/live_request.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace dsa {

class Inbox final {
 public:
  explicit Inbox(std::int64_t waiting_max) : waiting_max_(waiting_max) {
    items_.reserve(waiting_max);
  }
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  // Takes one of the waiting_max places, before any work is done for the request; false where none
  // is left.  A place is given back when its request starts to run or ends.
  bool TryReserve() {
    std::int64_t waiting = waiting_.load(std::memory_order_relaxed);
    while (waiting < waiting_max_) {
      if (waiting_.compare_exchange_weak(waiting, waiting + 1, std::memory_order_relaxed)) {
        return true;
      }
    }
    return false;
  }

  // Corrects the number of places taken.  It is a count and orders nothing: the requests
  // themselves are handed over under the mutex.
  void AddWaiting(std::int64_t difference) {
    waiting_.fetch_add(difference, std::memory_order_relaxed);
  }
  std::int64_t waiting() const { return waiting_.load(std::memory_order_relaxed); }

  // False once closed; the request is then left alone.
  bool TryPush(std::unique_ptr<LiveRequest>& request) {
    const std::lock_guard lock(mutex_);
    if (closed_) {
      return false;
    }
    items_.push_back(std::move(request));
    live_.fetch_add(1, std::memory_order_relaxed);
    pushed_.store(true, std::memory_order_release);  // partner: TakeAll
    return true;
  }

  // Engine thread: moves what arrived into `out`, which must be empty and have as much capacity.
  void TakeAll(std::vector<std::unique_ptr<LiveRequest>>& out) {
    if (!pushed_.load(std::memory_order_acquire)) {  // partner: TryPush
      return;
    }
    const std::lock_guard lock(mutex_);
    out.swap(items_);
    pushed_.store(false, std::memory_order_relaxed);
  }

  void Close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  bool closed() const {
    const std::lock_guard lock(mutex_);
    return closed_;
  }

  // Requests pushed whose last delta was not delivered yet.
  std::int64_t live() const { return live_.load(std::memory_order_acquire); }
  void EndOne() { live_.fetch_sub(1, std::memory_order_release); }

 private:
  const std::int64_t waiting_max_;
  std::atomic<std::int64_t> waiting_{0};
  std::atomic<std::int64_t> live_{0};
  std::atomic<bool> pushed_{false};
  mutable std::mutex mutex_;
  bool closed_ = false;                              // guarded by mutex_
  std::vector<std::unique_ptr<LiveRequest>> items_;  // guarded by mutex_
};

}  // namespace dsa
