// What happens on the engine thread: admit, sweep, plan, build, launch, collect, commit, judge the
// tokens, show their text.  No locks but the inbox's, no callbacks, no allocation in a steady step.
//
// Where the executor runs ahead, the text of a step is shown while the next one runs: what that one
// needs to know, ids and lengths, is judged before it is planned.  A stop string is then found one
// step late; its sequence leaves in flight and what the step computed for it is dropped.
#pragma once

#include "cache/block_pool.h"
#include "cache/prefix_cache.h"
#include "cache/prefix_hash.h"
#include "common/clock.h"
#include "scheduler/scheduler.h"
#include "server/engine/batch_builder.h"
#include "server/engine/billing.h"
#include "server/engine/engine_config.h"
#include "server/engine/engine_progress.h"
#include "server/engine/executor.h"
#include "server/engine/inbox.h"
#include "server/engine/live_request.h"
#include "server/engine/outbox.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace dsa {

// EngineLoad as the engine thread leaves it for others: single numbers, each consistent by itself.
struct LoadCounters {
  std::atomic<std::int64_t> running{0};
  std::atomic<std::int32_t> blocks_referenced{0};
  std::atomic<std::int32_t> blocks_cached{0};
  std::atomic<std::int64_t> steps{0};
  std::atomic<std::int64_t> tokens_computed{0};
  std::atomic<std::int64_t> last_step_us{0};
  std::atomic<std::int64_t> step_estimate_us{0};  // of the step at hand; 0: unknown
  std::atomic<std::int64_t> requests_finished{0};
  BusyCounters busy;
};

class EngineCore final {
 public:
  struct Dependencies {
    StepExecutor& executor;
    const Clock& clock;
    Inbox& inbox;
    Outbox& outbox;
    std::int64_t text_bytes_max;  // of one StopChecker::text()
  };
  EngineCore(const EngineConfig& config, const Dependencies& dependencies);
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;

  void BindThread() { executor_.BindThread(); }
  EngineProgress RunOnce();
  const Scheduler& scheduler() const { return scheduler_; }
  const StepCostModel& costs() const { return costs_; }
  const BlockPool& pool() const { return pool_; }
  const PrefixCache& prefix_cache() const { return cache_; }

  // Ends all live requests with this error, also in the middle of a step: their last deltas go into
  // the outbox.  Engine thread.
  void FailLive(ErrorCode code, const char* message);
  // The same for those that were submitted and not admitted yet, once the outbox is empty.
  void FailArrivals(ErrorCode code, const char* message);

  // Any thread.
  void AbortAll() { abort_all_.store(true, std::memory_order_relaxed); }
  Status CheckFits(std::int64_t prompt_tokens, std::int64_t max_tokens) const {
    return scheduler_.CheckFits(prompt_tokens, max_tokens);
  }
  const PrefixHasher& hasher() const { return hasher_; }
  const LoadCounters& load() const { return load_; }

  // What the outbox must be able to take before a step starts.
  static Outbox::Capacity StepCapacity(const EngineConfig& config, std::int64_t text_bytes_max);

 private:
  // How a request ended.
  struct Ending {
    FinishReason reason;
    ErrorCode error_code{};
    const char* error_message = nullptr;
  };

  void AdmitFromInbox();
  void Sweep(MonotonicUs now_us);
  std::optional<Ending> EndingOf(const LiveRequest& live, const Sequence& sequence,
                                 MonotonicUs now_us) const;
  // A token whose text is not shown yet.
  struct JudgedToken {
    LiveRequest* live;
    std::unique_ptr<LiveRequest> ended;  // the same, where it was the last token
    std::int32_t slot;                   // in the scheduler, where it was not
    TokenId token;
    std::int64_t entry;        // of the step's result
    std::int32_t preemptions;  // when it was judged
  };

  void RunStep(const StepPlan& plan, MonotonicUs start_us);
  void Bill(const StepPlan& plan, std::int64_t padding_rows, std::int64_t elapsed_us);
  void FailFaulty(const StepPlan& plan, const StepResult& result);
  void Deliver(const StepPlan& plan, const StepResult& result, MonotonicUs now_us);
  void Prefetch(const StepPlan& plan, const StepResult& result, std::int64_t entry) const;
  JudgedToken JudgeToken(std::int32_t slot, std::int64_t entry, const StepResult& result,
                         MonotonicUs now_us);
  void ShowToken(JudgedToken& judged, const StepResult& result);
  void ShowJudged();
  void End(std::int32_t slot, const Ending& ending);
  std::unique_ptr<LiveRequest> Release(std::int32_t slot, CachedBlocks cached_blocks);
  static void FillUsage(const LiveRequest& live, const Sequence& sequence, Usage& usage);
  void SettleQueue();
  void StoreLoad();
  std::int64_t EstimateUs(const StepPlan& plan) const;

  const EngineConfig config_;
  StepExecutor& executor_;
  const Clock& clock_;
  Inbox& inbox_;
  Outbox& outbox_;
  const Outbox::Capacity step_capacity_;

  BlockPool pool_;
  PrefixCache cache_;
  PrefixHasher hasher_;
  StepCostModel costs_;
  Billing billing_;
  Scheduler scheduler_;
  BatchBuilder builder_;

  std::vector<std::unique_ptr<LiveRequest>> live_;      // by the scheduler's slot
  std::vector<std::unique_ptr<LiveRequest>> arrivals_;  // empty between calls
  std::array<TokenLogprob, kTopLogprobsMax> top_logprobs_{};
  std::vector<JudgedToken> judged_;   // of the last step, where the executor runs ahead
  StepResult judged_result_{};        // of that step
  std::int64_t waiting_counted_ = 0;  // of the inbox's places, those of the scheduler's queue
  std::atomic<bool> abort_all_{false};
  LoadCounters load_;
};

}  // namespace dsa
