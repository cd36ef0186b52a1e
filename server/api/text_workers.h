// Work on what a client sent (parsing, rendering, encoding) that takes longer than gRPC's threads
// may be away from other calls.  Two threads, each with a bounded queue: one for large requests, so
// that they wait for each other and nobody for them.  Thread-safe.
#pragma once

#include "common/status.h"

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string_view>
#include <thread>

namespace dsa {

// One thread and its queue.
class WorkQueue final {
 public:
  explicit WorkQueue(std::size_t places);
  ~WorkQueue();  // does what waits first
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // False where every place is taken; `work` is then not done.
  bool TryPush(std::function<void()> work);

 private:
  void Run();

  const std::size_t places_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;  // guarded by mutex_
  bool stopping_ = false;                      // guarded by mutex_
  std::thread thread_;
};

class TextWorkers final {
 public:
  // Up to here a gRPC thread does the work itself: at most a few milliseconds.
  static constexpr std::size_t kShortBytesMax = std::size_t{16} << 10;
  // Above, a request is large.
  static constexpr std::size_t kMediumBytesMax = std::size_t{256} << 10;

  TextWorkers() : medium_(kMediumPlaces), large_(kLargePlaces) {}

  // Does `work` for a request of `bytes` now or later.  RESOURCE_EXHAUSTED where too many wait;
  // it is then not done.  The work never waits.
  Status Do(std::size_t bytes, std::function<void()> work);

 private:
  // What waits stays in memory: at most 64 MiB and, at the default size of messages, 256 MiB.
  static constexpr std::size_t kMediumPlaces = 256;
  static constexpr std::size_t kLargePlaces = 16;

  WorkQueue medium_;
  WorkQueue large_;
};

}  // namespace dsa
