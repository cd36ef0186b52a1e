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
#include <span>
#include <utility>
#include <vector>

namespace dsa {

class Inbox final {
 public:
  struct Config {
    std::int64_t waiting_max;    // places in the queue
    std::int64_t sequences_max;  // that can start while nothing runs
  };
  explicit Inbox(const Config& config)
      : places_max_(config.waiting_max + config.sequences_max),
        places_(places_max_),
        startable_(config.sequences_max) {
    items_.reserve(places_max_);
  }
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  // Takes places, before any work is done for requests; false where too few are left.  There are
  // waiting_max of them and one more for each request that the engine could start at once, so that
  // who arrives in the moment before others start is not refused for them.
  bool TryReserve(std::int64_t count) {
    std::int64_t places = places_.load(std::memory_order_relaxed);
    while (places >= count) {
      if (places_.compare_exchange_weak(places, places - count, std::memory_order_relaxed)) {
        waiting_.fetch_add(count, std::memory_order_relaxed);
        return true;
      }
    }
    return false;
  }
  // As many as there are while nothing waits and nothing runs.
  std::int64_t places_max() const { return places_max_; }
  // Gives back the places of requests that were not pushed.
  void ReturnPlaces(std::int64_t count) {
    waiting_.fetch_sub(count, std::memory_order_relaxed);
    places_.fetch_add(count, std::memory_order_relaxed);
  }

  // Engine thread: so many more wait than before, and so many could start at once.  A request that
  // starts changes both and no place.  The requests themselves are handed over under the mutex.
  void Settle(std::int64_t waiting_difference, std::int64_t startable) {
    const std::int64_t places = startable - startable_ - waiting_difference;
    startable_ = startable;
    if (waiting_difference != 0) {
      waiting_.fetch_add(waiting_difference, std::memory_order_release);  // partner: waiting
    }
    if (places != 0) {
      places_.fetch_add(places, std::memory_order_relaxed);
    }
  }
  // Who reads the count of running sequences behind this sees a request in one of the two.
  std::int64_t waiting() const { return waiting_.load(std::memory_order_acquire); }

  // False once closed; the requests are then left alone.
  bool TryPush(std::span<std::unique_ptr<LiveRequest>> requests) {
    const std::lock_guard lock(mutex_);
    if (closed_) {
      return false;
    }
    for (std::unique_ptr<LiveRequest>& request : requests) {
      items_.push_back(std::move(request));
    }
    live_.fetch_add(static_cast<std::int64_t>(requests.size()), std::memory_order_relaxed);
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

  // Any thread: some have not been taken.  A hint.
  bool has_arrivals() const { return pushed_.load(std::memory_order_relaxed); }

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
  const std::int64_t places_max_;
  std::atomic<std::int64_t> places_;  // below 0 while preempted sequences wait beyond the bound
  std::atomic<std::int64_t> waiting_{0};
  std::int64_t startable_;  // engine thread
  std::atomic<std::int64_t> live_{0};
  std::atomic<bool> pushed_{false};
  mutable std::mutex mutex_;
  bool closed_ = false;                              // guarded by mutex_
  std::vector<std::unique_ptr<LiveRequest>> items_;  // guarded by mutex_
};

}  // namespace dsa
