// An engine that does what the test tells it: it keeps what is submitted, and the test delivers.
#pragma once

#include "server/engine/engine.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace dsa::testing {

struct Submitted {
  Request request;
  std::shared_ptr<TokenSink> sink;
};

class FakeEngine final : public Engine {
 public:
  Status SubmitTogether(std::vector<Siblings> prompts) override {
    const std::lock_guard lock(mutex_);
    if (refusal) {
      return *refusal;
    }
    if (!live.insert(prompts.front().request.external_id).second) {
      return Error{ErrorCode::kAlreadyExists, "live"};
    }
    for (const Siblings& prompt : prompts) {
      for (std::size_t i = 0; i < prompt.sinks.size(); ++i) {
        Submitted one{prompt.request, prompt.sinks[i]};
        one.request.sampling.seed += i;
        submitted_.push_back(std::move(one));
      }
    }
    changed_.notify_all();
    return {};
  }

  RequestId NextRequestId() override { return static_cast<RequestId>(++ids_); }

  bool Abort(const std::string& external_id) override {
    const std::lock_guard lock(mutex_);
    for (const Submitted& one : submitted_) {
      if (one.request.external_id == external_id) {
        TokenDelta last;
        last.finish = FinishReason::kAborted;
        live.erase(external_id);
        one.sink->OnDelta(std::move(last));
        return true;
      }
    }
    return false;
  }

  EngineLoad Load() const override {
    EngineLoad load;
    load.waiting = 3;
    load.blocks_total = 7;
    load.ranks.push_back(
        {.last_step_us = 2500, .expert_pairs = 80, .expert_pairs_max_over_mean = 1.25});
    return load;
  }
  void Drain(std::int64_t /*limit_us*/) override {}

  // The request submitted as number `index`, from 0; waits for it, at most 20 s.
  std::optional<Submitted> Wait(std::size_t index) {
    std::unique_lock lock(mutex_);
    const bool came = changed_.wait_for(lock, std::chrono::seconds(20),
                                        [&] { return submitted_.size() > index; });
    return came ? std::optional(submitted_[index]) : std::nullopt;
  }

  // As if nothing had been submitted; with that go the sinks.
  void Forget() {
    const std::lock_guard lock(mutex_);
    submitted_.clear();
    live.clear();
  }

  std::size_t submitted() const {
    const std::lock_guard lock(mutex_);
    return submitted_.size();
  }

  std::optional<Error> refusal;  // set before the call that it refuses
  // Ids that Submit refuses: those submitted and not aborted, whatever a test lets become of them,
  // and what a test says before the first call.
  std::set<std::string> live;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Submitted> submitted_;  // guarded by mutex_
  std::atomic<std::int64_t> ids_{0};
};

inline TokenDelta Delta(const std::string& text, const std::vector<std::int32_t>& ids) {
  TokenDelta delta;
  delta.text = text;
  for (const std::int32_t id : ids) {
    delta.tokens.push_back({.id = TokenId{id}, .logprob = -0.5F, .top_logprobs = {}});
  }
  return delta;
}

inline TokenDelta LastDelta(FinishReason reason) {
  TokenDelta delta;
  delta.finish = reason;
  delta.usage = {.prompt_tokens = 3,
                 .completion_tokens = 2,
                 .cache_hit_tokens = 1,
                 .preemptions = 4,
                 .queue_us = 1000,
                 .prefill_us = 2000,
                 .decode_us = 3000,
                 .cost = {.prefill_us = 1.5e6, .decode_us = 2.1e6}};
  return delta;
}

}  // namespace dsa::testing
