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
#include <span>
#include <string>
#include <utility>
#include <vector>

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
  MonotonicUs arrival_us = 0;          // constant after construction
  std::unique_ptr<Sequence> sequence;  // null while the scheduler owns it
  // The prompt's tokens but the first, where their log-probabilities are wanted: written by the
  // engine thread before the delta that takes them along, TokenDelta::prompt; the pump's from then
  // on.
  std::vector<GeneratedToken> prompt;

  // Constant after construction; any thread.
  std::string external_id;
};

// Live requests by external id; siblings share one.  Thread-safe; the engine thread never takes its
// lock.
class LiveRegistry final {
 public:
  // `requests` have the same id.  False where it is live.  An empty id is not registered.
  bool TryInsert(std::span<const std::unique_ptr<LiveRequest>> requests) {
    const std::string& id = requests.front()->external_id;
    if (id.empty()) {
      return true;
    }
    std::vector<LiveRequest*> named;
    for (const std::unique_ptr<LiveRequest>& request : requests) {
      named.push_back(request.get());
    }
    const std::lock_guard lock(mutex_);
    return requests_.emplace(id, std::move(named)).second;
  }

  void Erase(const LiveRequest& request) {
    const std::lock_guard lock(mutex_);
    const auto found = requests_.find(request.external_id);
    if (found == requests_.end()) {
      return;
    }
    std::erase(found->second, &request);
    if (found->second.empty()) {
      requests_.erase(found);
    }
  }

  bool Abort(const std::string& external_id) {
    const std::lock_guard lock(mutex_);
    const auto found = requests_.find(external_id);
    if (found == requests_.end()) {
      return false;
    }
    for (LiveRequest* const request : found->second) {
      request->aborted.store(true, std::memory_order_relaxed);
    }
    return true;
  }

 private:
  std::mutex mutex_;
  // Guarded by mutex_; erased before they die.
  std::map<std::string, std::vector<LiveRequest*>> requests_;
};

}  // namespace dsa
