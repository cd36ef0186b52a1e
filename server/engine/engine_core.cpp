#include "server/engine/engine_core.h"

#include "common/check.h"
#include "kernels/batch_view.h"

#include <algorithm>
#include <span>
#include <utility>

namespace dsa {
namespace {

constexpr std::int64_t kPrefetchEntries = 4;  // 2 to 8 measure alike, 16 slower

}  // namespace

EngineCore::EngineCore(const EngineConfig& config, const Dependencies& dependencies)
    : config_(config),
      executor_(dependencies.executor),
      clock_(dependencies.clock),
      inbox_(dependencies.inbox),
      outbox_(dependencies.outbox),
      step_capacity_(StepCapacity(config, dependencies.text_bytes_max)),
      pool_(config.blocks, config.tokens_per_block),
      cache_(pool_),
      hasher_({.identity = config.cache_identity,
               .tokens_per_block = config.tokens_per_block,
               .hash_bits = config.hash_bits}),
      scheduler_(config.scheduler, {.pool = pool_, .cache = cache_, .hasher = hasher_}),
      builder_(
          {.step_tokens_max = config.scheduler.step_tokens_max,
           .sequences_max = config.scheduler.sequences_max,
           .slots_max = scheduler_.slots(),
           .context_tokens_max = config.scheduler.context_tokens_max,
           .tokens_per_block = config.tokens_per_block,
           .end_ids = config.end_ids,
           .row_adjustments = RowAdjustments(config.vocabulary, config.scheduler.context_tokens_max,
                                             static_cast<std::int64_t>(config.end_ids.size())),
           .row_buckets = config.row_buckets,
           .padding_block = config.blocks}) {
  live_.resize(scheduler_.slots());
  arrivals_.reserve(scheduler_.slots());
  judged_.reserve(config.scheduler.sequences_max);
}

// Of a step come at most a token's delta of each sequence that ran and an end of each live request.
Outbox::Capacity EngineCore::StepCapacity(const EngineConfig& config, std::int64_t text_bytes_max) {
  const std::int64_t live = config.scheduler.sequences_max + config.scheduler.waiting_max;
  const std::int64_t events = config.scheduler.sequences_max + live;
  return {.events = events,
          .text_bytes = events * text_bytes_max,
          .top_logprobs = config.scheduler.sequences_max * kTopLogprobsMax};
}

EngineProgress EngineCore::RunOnce() {
  if (!outbox_.TryReserve(step_capacity_)) {
    return EngineProgress::kBlocked;
  }
  const MonotonicUs start_us = clock_.NowUs();
  AdmitFromInbox();
  Sweep(start_us);
  const StepPlan& plan = scheduler_.Plan(start_us, costs_);
  StoreLoad();  // before the queue is settled: a request is seen waiting or running at any time
  SettleQueue();
  if (plan.rows.empty()) {
    ShowJudged();
  } else {
    RunStep(plan, start_us);
  }
  SettleQueue();
  StoreLoad();
  return plan.rows.empty() ? EngineProgress::kIdle : EngineProgress::kStepped;
}

// By the cost model, but not less than the last step: it knows nothing of kinds of work that no
// step has had yet.
std::int64_t EngineCore::EstimateUs(const StepPlan& plan) const {
  return std::max(load_.last_step_us.load(std::memory_order_relaxed),
                  static_cast<std::int64_t>(costs_.EstimateUs(plan.work)));
}

void EngineCore::StoreLoad() {
  load_.running.store(static_cast<std::int64_t>(scheduler_.running().size()),
                      std::memory_order_relaxed);
  load_.blocks_referenced.store(pool_.referenced_blocks(), std::memory_order_relaxed);
  load_.blocks_cached.store(pool_.cached_blocks(), std::memory_order_relaxed);
}

void EngineCore::RunStep(const StepPlan& plan, MonotonicUs start_us) {
  load_.step_estimate_us.store(EstimateUs(plan), std::memory_order_relaxed);
  const ForwardBatch& batch = builder_.Build(plan, scheduler_.sequences());
  executor_.Launch(batch);
  ShowJudged();  // of the step before
  const StepResult& result = executor_.Collect();
  const MonotonicUs end_us = clock_.NowUs();
  costs_.Measure(plan.work, end_us - start_us);
  Bill(plan, batch.shape.tokens - batch.tokens, end_us - start_us);
  FailFaulty(plan, result);
  scheduler_.Commit(plan);
  Deliver(plan, result, end_us);
  load_.steps.fetch_add(1, std::memory_order_relaxed);
  load_.tokens_computed.fetch_add(plan.tokens, std::memory_order_relaxed);
  load_.last_step_us.store(end_us - start_us, std::memory_order_relaxed);
}

// Before anything ends, so that the usage of what ends has its share of this step.
void EngineCore::Bill(const StepPlan& plan, std::int64_t padding_rows, std::int64_t elapsed_us) {
  billing_.BeginStep(plan, padding_rows, elapsed_us, costs_);
  for (const StepPlan::Row& row : plan.rows) {
    const Sequence* sequence = scheduler_.Find(row.sequence, row.slot);
    LiveRequest* const live = sequence == nullptr ? nullptr : live_[row.slot].get();
    billing_.Charge(row, sequence, live != nullptr && live->billed ? &live->cost : nullptr);
  }
  load_.busy.Store(billing_.total());
}

void EngineCore::AdmitFromInbox() {
  inbox_.TakeAll(arrivals_);
  for (std::unique_ptr<LiveRequest>& arrival : arrivals_) {
    const std::int32_t slot = scheduler_.Add(std::move(arrival->sequence));
    live_[slot] = std::move(arrival);
    ++waiting_counted_;
  }
  arrivals_.clear();
}

// Ends what was cancelled, aborted or has expired, before anything is planned for it.
void EngineCore::Sweep(MonotonicUs now_us) {
  for (const std::unique_ptr<LiveRequest>& live : live_) {
    if (live != nullptr) {
      const auto slot = static_cast<std::int32_t>(&live - live_.data());
      const auto ending = EndingOf(*live, *scheduler_.sequences()[slot], now_us);
      if (ending.has_value()) {
        End(slot, *ending);
      }
    }
  }
}

std::optional<EngineCore::Ending> EngineCore::EndingOf(const LiveRequest& live,
                                                       const Sequence& sequence,
                                                       MonotonicUs now_us) const {
  if (live.sink->cancelled()) {
    return Ending{.reason = FinishReason::kCancelled};
  }
  if (live.aborted.load(std::memory_order_relaxed) || abort_all_.load(std::memory_order_relaxed)) {
    return Ending{.reason = FinishReason::kAborted};
  }
  if (live.deadline_us.has_value() && *live.deadline_us <= now_us) {
    return Ending{.reason = FinishReason::kDeadline,
                  .error_code = ErrorCode::kDeadlineExceeded,
                  .error_message = sequence.first_scheduled_us().has_value()
                                       ? "deadline expired"
                                       : "deadline expired in queue"};
  }
  return std::nullopt;
}

// Before Commit, so that no block of a faulty sequence becomes shareable.
void EngineCore::FailFaulty(const StepPlan& plan, const StepResult& result) {
  const auto is_set = [](std::int32_t faults) { return faults != 0; };  // padding's too: harmless
  if (std::none_of(result.row_faults.begin(), result.row_faults.end(), is_set) &&
      std::none_of(result.sample_faults.begin(), result.sample_faults.end(), is_set)) {
    return;
  }
  std::int64_t first_row = 0;
  std::int64_t entry = 0;
  for (const StepPlan::Row& row : plan.rows) {
    std::int32_t faults = 0;
    for (const std::int32_t fault : result.row_faults.subspan(first_row, row.tokens)) {
      faults |= fault;
    }
    if (row.samples > 0) {
      faults |= result.sample_faults[entry];
      ++entry;
    }
    first_row += row.tokens;
    if (faults != 0 && scheduler_.Find(row.sequence, row.slot) != nullptr) {
      End(row.slot,
          {.reason = FinishReason::kError,
           .error_code = ErrorCode::kInternal,
           .error_message = (faults & kRowFaultIndexerNan) != 0    ? "non-finite index scores"
                            : (faults & kRowFaultNoCandidate) != 0 ? "no token may be sampled"
                                                                   : "non-finite logits"});
    }
  }
}

void EngineCore::Deliver(const StepPlan& plan, const StepResult& result, MonotonicUs now_us) {
  const auto entries = static_cast<std::int64_t>(plan.sample_rows.size());
  for (std::int64_t ahead = 0; ahead < std::min(kPrefetchEntries, entries); ++ahead) {
    Prefetch(plan, result, ahead);
  }
  for (std::int64_t entry = 0; entry < entries; ++entry) {
    if (entry + kPrefetchEntries < entries) {
      Prefetch(plan, result, entry + kPrefetchEntries);
    }
    const StepPlan::Row& row = plan.rows[plan.sample_rows[entry]];
    if (scheduler_.Find(row.sequence, row.slot) != nullptr) {
      JudgedToken judged = JudgeToken(row.slot, entry, result, now_us);
      if (executor_.RunsAhead()) {
        judged_.push_back(std::move(judged));
      } else {
        ShowToken(judged, result);
      }
    }
  }
  judged_result_ = result;
}

// What a token's delivery reads lies apart for each sequence, and its text anywhere in the
// vocabulary's: asked for a few tokens ahead, it has come when it is needed.
void EngineCore::Prefetch(const StepPlan& plan, const StepResult& result,
                          std::int64_t entry) const {
  const std::int32_t slot = plan.rows[plan.sample_rows[entry]].slot;
  if (live_[slot] != nullptr) {
    scheduler_.sequences()[slot]->Prefetch();
    live_[slot]->stop->Prefetch(TokenId{result.tokens[entry]});
  }
}

// What the next plan must know of a token.
EngineCore::JudgedToken EngineCore::JudgeToken(std::int32_t slot, std::int64_t entry,
                                               const StepResult& result, MonotonicUs now_us) {
  LiveRequest& live = *live_[slot];
  const Sequence& sequence = *scheduler_.sequences()[slot];
  const TokenId token{result.tokens[entry]};
  scheduler_.Append(slot, token);
  live.last_token_us = now_us;
  if (live.completion_tokens == 0) {
    live.first_token_us = now_us;
  }
  ++live.completion_tokens;
  JudgedToken judged{.live = &live,
                     .ended = nullptr,
                     .slot = slot,
                     .token = token,
                     .entry = entry,
                     .preemptions = sequence.preemptions()};
  if (live.stop->Judge(token, sequence.generated()).has_value()) {
    judged.ended = Release(slot, CachedBlocks::kKeep);
  }
  return judged;
}

// What its client hears of it.
void EngineCore::ShowToken(JudgedToken& judged, const StepResult& result) {
  LiveRequest& live = *judged.live;
  const Sequence& sequence =
      judged.ended != nullptr ? *live.sequence : *scheduler_.sequences()[judged.slot];
  OutboxEvent& event = outbox_.Next();
  event.request = &live;
  event.has_token = true;
  event.token = judged.token;
  event.finish = live.stop->Show();
  std::int64_t likely = 0;
  if (live.wants_logprobs) {
    const std::int64_t first = judged.entry * kTopLogprobsMax;
    event.logprob = result.logprobs[judged.entry];
    const std::int64_t wanted = *sequence.request().sampling.top_logprobs;
    for (; likely < wanted && result.top_ids[first + likely] >= 0; ++likely) {
      top_logprobs_[likely] = {.id = TokenId{result.top_ids[first + likely]},
                               .logprob = result.top_logprobs[first + likely]};
    }
  }
  FillUsage(live, sequence, event.usage);
  event.usage.preemptions = judged.preemptions;
  if (event.finish.has_value() && judged.ended == nullptr) {
    judged.ended = Release(judged.slot, CachedBlocks::kKeep);  // a stop string
  }
  if (judged.ended != nullptr) {
    event.request = judged.ended.release();  // the outbox's now
  }
  event.content_bytes_max = live.stop->content_bytes_max();
  outbox_.Push(live.stop->text(), std::span(top_logprobs_).first(likely));
}

void EngineCore::ShowJudged() {
  if (judged_.empty()) {
    return;
  }
  for (std::size_t i = 0; i < judged_.size(); ++i) {
    const std::size_t ahead = i + kPrefetchEntries;
    if (ahead < judged_.size() && judged_[ahead].live != nullptr) {
      judged_[ahead].live->stop->Prefetch(judged_[ahead].token);
    }
    if (judged_[i].live != nullptr) {
      ShowToken(judged_[i], judged_result_);
    }
  }
  judged_.clear();
  SettleQueue();  // a stop string may have ended somebody: its place is free at once
}

// Ends a request from outside its own tokens.
void EngineCore::End(std::int32_t slot, const Ending& ending) {
  LiveRequest& live = *live_[slot];
  const auto judged = std::find_if(judged_.begin(), judged_.end(),
                                   [&](const JudgedToken& token) { return token.live == &live; });
  if (judged != judged_.end()) {
    ShowToken(*judged, judged_result_);
    judged->live = nullptr;
    if (live_[slot] == nullptr) {
      return;  // its text has ended it
    }
  }
  live.stop->Flush();
  OutboxEvent& event = outbox_.Next();
  event.request = &live;
  event.finish = ending.reason;
  event.error_code = ending.error_code;
  event.error_message = ending.error_message;
  const Sequence& sequence = *scheduler_.sequences()[slot];
  FillUsage(live, sequence, event.usage);
  if (!sequence.first_scheduled_us().has_value()) {
    event.usage.queue_us = clock_.NowUs() - live.arrival_us;  // it never left the queue
  }
  const bool faulty = ending.reason == FinishReason::kError;
  event.request =  // the outbox's now
      Release(slot, faulty ? CachedBlocks::kForget : CachedBlocks::kKeep).release();
  outbox_.Push(live.stop->text(), {});
}

void EngineCore::FailLive(ErrorCode code, const char* message) {
  ShowJudged();
  for (std::size_t slot = 0; slot < live_.size(); ++slot) {
    if (live_[slot] != nullptr) {
      End(static_cast<std::int32_t>(slot),
          {.reason = FinishReason::kError, .error_code = code, .error_message = message});
    }
  }
}

void EngineCore::FailArrivals(ErrorCode code, const char* message) {
  DSA_CHECK(outbox_.TryReserve(step_capacity_), "EngineCore: the outbox is not empty");
  AdmitFromInbox();
  FailLive(code, message);
}

// Takes a request that has ended out of the scheduler.
std::unique_ptr<LiveRequest> EngineCore::Release(std::int32_t slot, CachedBlocks cached_blocks) {
  std::unique_ptr<LiveRequest> live = std::move(live_[slot]);
  live->sequence = scheduler_.Remove(slot, cached_blocks);
  load_.requests_finished.fetch_add(1, std::memory_order_relaxed);
  return live;
}

// Writes every field.
void EngineCore::FillUsage(const LiveRequest& live, const Sequence& sequence, Usage& usage) {
  usage.prompt_tokens = sequence.prompt_tokens();
  usage.completion_tokens = live.completion_tokens;
  usage.cache_hit_tokens = sequence.cache_hit_tokens();
  usage.preemptions = sequence.preemptions();
  const std::optional<MonotonicUs>& scheduled_us = sequence.first_scheduled_us();
  const bool answered = live.completion_tokens > 0;
  usage.queue_us = scheduled_us.has_value() ? *scheduled_us - live.arrival_us : 0;
  usage.prefill_us = answered ? live.first_token_us - *scheduled_us : 0;
  usage.decode_us = answered ? live.last_token_us - live.first_token_us : 0;
  usage.cost = live.cost;
}

// Places of the queue follow the scheduler's: taken again by a preempted sequence, and while one
// waits nothing else could start.
void EngineCore::SettleQueue() {
  const auto waiting = static_cast<std::int64_t>(scheduler_.waiting().size());
  const auto running = static_cast<std::int64_t>(scheduler_.running().size());
  inbox_.Settle(waiting - waiting_counted_,
                waiting > 0 ? 0 : config_.scheduler.sequences_max - running);
  waiting_counted_ = waiting;
}

}  // namespace dsa
