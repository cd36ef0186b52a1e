// A request between Submit and its last delta, and the index of those by the client's id.
#pragma once

#include "common/cache_line.h"
#include "common/clock.h"
#include "scheduler/sequence.h"
#include "server/engine/stop_checker.h"
#include "server/engine/token_sink.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace dsa {

// Made by the submitting thread, handed to the engine through the inbox and, with its last delta,
// to the stream pump through the outbox, which destroys it: so nothing is freed within a step.
//
// What every step reads comes first, in as few cache lines as it fits.
struct alignas(kCacheLineBytes) LiveRequest {
  // Constant after construction; any thread.
  std::shared_ptr<TokenSink> sink;
  std::optional<MonotonicUs> deadline_us;
  bool wants_logprobs = false;
  bool billed = true;

  // A hint that is polled every step; nothing is ordered by it.
  std::atomic<bool> aborted{false};

  // Engine thread.
  std::unique_ptr<StopChecker> stop;
  std::int64_t completion_tokens = 0;
  MonotonicUs first_token_us = 0;
  MonotonicUs last_token_us = 0;
  RequestCost cost{};
  std::unique_ptr<Sequence> sequence;  // null while the scheduler owns it

  // Constant after construction; any thread.
  MonotonicUs arrival_us = 0;
  std::string external_id;
};

// Live requests by external id.  Thread-safe; the engine thread never takes its lock.
class LiveRegistry final {
 public:
  // False where the id is live.  An empty id is not registered.
  bool TryInsert(const std::string& external_id, LiveRequest* request) {
    const std::lock_guard lock(mutex_);
    return external_id.empty() || requests_.emplace(external_id, request).second;
  }

  void Erase(const std::string& external_id) {
    const std::lock_guard lock(mutex_);
    requests_.erase(external_id);
  }

  bool Abort(const std::string& external_id) {
    const std::lock_guard lock(mutex_);
    const auto found = requests_.find(external_id);
    if (found == requests_.end()) {
      return false;
    }
    found->second->aborted.store(true, std::memory_order_relaxed);
    return true;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, LiveRequest*> requests_;  // guarded by mutex_; erased before they die
};

}  // namespace dsa
