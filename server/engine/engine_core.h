// What happens on the engine thread: admit, sweep, plan, build, launch, collect, commit, judge the
// tokens, show their text.  No locks but the inbox's, no callbacks, no allocation in a steady step.
//
// With several data ranks a request waits in the engine until one of them can start it, and is that
// rank's from then on (scheduler/rank_offer.h).  A step is of all data ranks together, also of
// those that have nothing to do in it, since the experts are over all of them.
//
// Where the executor runs ahead, the text of a step is shown while the next one runs: what that one
// needs to know, ids and lengths, is judged before it is planned.  A stop string is then found one
// step late; its sequence leaves in flight and what the step computed for it is dropped.
#pragma once

#include "cache/prefix_hash.h"
#include "common/clock.h"
#include "scheduler/policy.h"
#include "scheduler/scheduler.h"
#include "server/engine/batch_builder.h"
#include "server/engine/billing.h"
#include "server/engine/data_rank.h"
#include "server/engine/engine_config.h"
#include "server/engine/engine_progress.h"
#include "server/engine/executor.h"
#include "server/engine/expert_load.h"
#include "server/engine/inbox.h"
#include "server/engine/live_request.h"
#include "server/engine/outbox.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace dsa {

// EngineLoad as the engine thread leaves it for others: single numbers, each consistent by itself.
// What it does not have, RankCounters have.
struct LoadCounters {
  std::atomic<std::int64_t> steps{0};
  std::atomic<std::int64_t> tokens_computed{0};
  std::atomic<std::int64_t> last_step_us{0};
  std::atomic<std::int64_t> step_estimate_us{0};  // of the step at hand; 0: unknown
  std::atomic<std::int64_t> requests_finished{0};
  BusyCounters busy;
};

// Told of every request that is bound to a rank, before it is, while all ranks are as the choice
// saw them; for the simulator's laws.
class BindingObserver {
 public:
  virtual ~BindingObserver() = default;
  virtual void OnBind(const Sequence& sequence, std::size_t rank) = 0;
};

class EngineCore final {
 public:
  struct Dependencies {
    StepExecutor& executor;
    const Clock& clock;
    Inbox& inbox;
    Outbox& outbox;
    std::int64_t text_bytes_max;  // of one StopChecker::text()
    BindingObserver* observer = nullptr;
  };
  EngineCore(const EngineConfig& config, const Dependencies& dependencies);
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;

  void BindThread() { executor_.BindThread(); }
  EngineProgress RunOnce();
  const DataRank& rank(std::size_t rank) const { return *ranks_.at(rank); }
  const StepCostModel& costs() const { return costs_; }
  // Requests that are at no rank yet, in policy order.
  std::span<const std::unique_ptr<LiveRequest>> unbound() const { return unbound_; }

  // Ends all live requests with this error, also in the middle of a step: their last deltas go into
  // the outbox.  Engine thread.
  void FailLive(ErrorCode code, const char* message);
  // The same for those that were submitted and not admitted yet, once the outbox is empty.
  void FailArrivals(ErrorCode code, const char* message);

  // Any thread.
  void AbortAll() { abort_all_.store(true, std::memory_order_relaxed); }
  Status CheckFits(std::int64_t prompt_tokens, std::int64_t max_tokens) const {
    return ranks_.front()->scheduler.CheckFits(prompt_tokens, max_tokens);  // as any of them
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
  void BindRequests();
  std::optional<std::size_t> RankFor(const Sequence& sequence);
  void AddTo(DataRank& rank, std::unique_ptr<LiveRequest> request);
  bool PlanStep(MonotonicUs now_us);
  std::optional<Ending> EndingOf(const LiveRequest& live, const Sequence& sequence,
                                 MonotonicUs now_us) const;
  // A token whose text is not shown yet.
  struct JudgedToken {
    DataRank* rank;
    LiveRequest* live;
    std::unique_ptr<LiveRequest> ended;  // the same, where it was the last token
    std::int32_t slot;                   // in the rank's scheduler, where it was not
    TokenId token;
    bool first;                // of the reply
    std::int64_t entry;        // of the step's result
    std::int32_t preemptions;  // when it was judged
  };

  void RunStep(MonotonicUs start_us);
  void BuildBatches();
  void Measure(std::int64_t elapsed_us);
  void CountExperts();
  void LookAtExperts();
  void Bill(std::int64_t elapsed_us);
  void FailFaulty(DataRank& rank, const StepResult& result);
  static void KeepPromptLogprobs(DataRank& rank, const StepResult& result);
  void EndPrompts(DataRank& rank, MonotonicUs now_us);
  void Deliver(DataRank& rank, const StepResult& result, MonotonicUs now_us);
  JudgedToken JudgeToken(DataRank& rank, std::int32_t slot, std::int64_t entry,
                         const StepResult& result, MonotonicUs now_us);
  void ShowToken(JudgedToken& judged, const StepResult& result);
  void ShowJudged();
  void End(DataRank& rank, std::int32_t slot, const Ending& ending);
  void EndUnbound(std::size_t index, const Ending& ending);
  void SayEnd(LiveRequest& live, const Sequence& sequence, const Ending& ending,
              OutboxEvent& event) const;
  std::unique_ptr<LiveRequest> Release(DataRank& rank, std::int32_t slot,
                                       CachedBlocks cached_blocks);
  static void FillUsage(const LiveRequest& live, const Sequence& sequence, Usage& usage);
  void SettleQueue();
  void StoreLoad();
  std::int64_t EstimateUs() const;

  const EngineConfig config_;
  StepExecutor& executor_;
  const Clock& clock_;
  Inbox& inbox_;
  Outbox& outbox_;
  const Outbox::Capacity step_capacity_;

  PrefixHasher hasher_;
  StepCostModel costs_;  // of a step of one rank
  Billing billing_;
  ExpertLoad expert_load_;
  bool has_uncounted_pairs_ = false;  // in the results of the last step
  std::unique_ptr<SchedulingPolicy> policy_;
  BindingObserver* const observer_;

  std::vector<std::unique_ptr<DataRank>> ranks_;
  std::vector<std::unique_ptr<LiveRequest>>
      unbound_;  // in policy order; empty where one rank is all
  std::vector<std::unique_ptr<LiveRequest>> arrivals_;  // empty between calls
  std::array<TokenLogprob, kTopLogprobsMax> top_logprobs_{};
  std::vector<JudgedToken> judged_;   // of the last step, where the executor runs ahead
  std::vector<BatchShape> shapes_;    // by rank; of the step at hand
  std::vector<RankOffer> offers_;     // by rank; of the request at hand
  std::int64_t waiting_counted_ = 0;  // of the inbox's places, those of who waits
  std::atomic<bool> abort_all_{false};
  LoadCounters load_;
};

}  // namespace dsa
