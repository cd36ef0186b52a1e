#include "server/engine/engine_core.h"

#include "common/check.h"
#include "kernels/batch_view.h"

#include <algorithm>
#include <span>
#include <utility>

namespace dsa {
namespace {

// What a token's delivery reads lies apart for each sequence, one thing says where the next lies,
// and its text is anywhere in the vocabulary's.  Asked for so many tokens ahead, each has come when
// it is needed, the next one's place among them.
constexpr std::int64_t kLiveAhead = 16;
constexpr std::int64_t kStopAhead = 12;
constexpr std::int64_t kDecoderAhead = 9;
constexpr std::int64_t kPlaceAhead = 6;
constexpr std::int64_t kTextAhead = 3;

// Before the delivery of `entry`, which may lie up to kLiveAhead before the first.  live_of(entry):
// a LiveRequest, null where it has ended; token_of(entry): its token.
template <typename LiveOf, typename TokenOf>
void PrefetchDelivery(std::int64_t entry, std::int64_t entries, const LiveOf& live_of,
                      const TokenOf& token_of) {
  const auto ahead = [&](std::int64_t tokens, const auto& prefetch) {
    const std::int64_t at = entry + tokens;
    if (at >= 0 && at < entries) {
      const LiveRequest* const live = live_of(at);
      if (live != nullptr) {
        prefetch(*live, at);
      }
    }
  };
  ahead(kLiveAhead, [](const LiveRequest& live, std::int64_t) { PrefetchLines<2>(&live); });
  ahead(kStopAhead, [](const LiveRequest& live, std::int64_t) { live.stop->Prefetch(); });
  ahead(kDecoderAhead, [](const LiveRequest& live, std::int64_t) { live.stop->PrefetchDecoder(); });
  ahead(kPlaceAhead,
        [&](const LiveRequest& live, std::int64_t at) { live.stop->PrefetchPlace(token_of(at)); });
  ahead(kTextAhead,
        [&](const LiveRequest& live, std::int64_t at) { live.stop->PrefetchText(token_of(at)); });
}

// Of all rows together, without a branch for each; padding's too, which are harmless.
std::int32_t AllFaults(std::span<const std::int32_t> faults) {
  std::int32_t all = 0;
  for (const std::int32_t fault : faults) {
    all |= fault;
  }
  return all;
}

}  // namespace

EngineCore::EngineCore(const EngineConfig& config, const Dependencies& dependencies)
    : config_(config),
      executor_(dependencies.executor),
      clock_(dependencies.clock),
      inbox_(dependencies.inbox),
      outbox_(dependencies.outbox),
      step_capacity_(StepCapacity(config, dependencies.text_bytes_max)),
      hasher_({.identity = config.cache_identity,
               .tokens_per_block = config.tokens_per_block,
               .hash_bits = config.hash_bits}),
      expert_load_(config.experts),
      policy_(MakePolicy(config.scheduler.policy)),
      observer_(dependencies.observer) {
  for (std::int64_t rank = 0; rank < config.data_ranks; ++rank) {
    ranks_.push_back(std::make_unique<DataRank>(config, executor_.OfDataRank(rank), hasher_));
  }
  const std::int64_t running = config.data_ranks * config.scheduler.sequences_max;
  arrivals_.reserve(running + config.scheduler.waiting_max);
  unbound_.reserve(running + config.scheduler.waiting_max);
  judged_.reserve(running);
  shapes_.resize(ranks_.size());
  offers_.resize(ranks_.size());
}

// Of a step come at most a token's delta of each sequence that ran and an end of each live request.
Outbox::Capacity EngineCore::StepCapacity(const EngineConfig& config, std::int64_t text_bytes_max) {
  const std::int64_t running = config.data_ranks * config.scheduler.sequences_max;
  const std::int64_t events = running + running + config.scheduler.waiting_max;
  return {.events = events,
          .text_bytes = events * text_bytes_max,
          .top_logprobs = running * kTopLogprobsMax};
}

EngineProgress EngineCore::RunOnce() {
  if (!outbox_.TryReserve(step_capacity_)) {
    return EngineProgress::kBlocked;
  }
  const MonotonicUs start_us = clock_.NowUs();
  AdmitFromInbox();
  Sweep(start_us);
  BindRequests();
  const bool any_rows = PlanStep(start_us);
  StoreLoad();  // before the queue is settled: a request is seen waiting or running at any time
  SettleQueue();
  if (any_rows) {
    RunStep(start_us);
  } else {
    ShowJudged();
    CountExperts();
    if (expert_load_.is_behind()) {
      LookAtExperts();
    }
  }
  SettleQueue();
  StoreLoad();
  return any_rows ? EngineProgress::kStepped : EngineProgress::kIdle;
}

bool EngineCore::PlanStep(MonotonicUs now_us) {
  bool any_rows = false;
  for (const auto& rank : ranks_) {
    rank->plan = &rank->scheduler.Plan(now_us, costs_);
    any_rows = any_rows || !rank->plan->rows.empty();
  }
  return any_rows;
}

// Of the step that is planned: that of the rank which takes longest by the cost model, but not less
// than the last step, since it knows nothing of kinds of work that no step has had yet.
std::int64_t EngineCore::EstimateUs() const {
  std::int64_t longest_us = load_.last_step_us.load(std::memory_order_relaxed);
  for (const auto& rank : ranks_) {
    longest_us =
        std::max(longest_us, static_cast<std::int64_t>(costs_.EstimateUs(rank->plan->work)));
  }
  return longest_us;
}

// The slowest of the ranks with rows took all of the step, another as much less as its own work
// took less.  So what all share, the engine's part and waiting for one another by turns, counts for
// each, and the longest estimate is that of the step.
void EngineCore::Measure(std::int64_t elapsed_us) {
  if (ranks_.size() == 1) {
    costs_.Measure(ranks_.front()->plan->work, elapsed_us);
    return;
  }
  std::int64_t slowest_us = 0;
  for (const auto& rank : ranks_) {
    slowest_us = std::max(slowest_us, rank->plan->rows.empty() ? 0 : rank->executor.OwnUs());
  }
  for (const auto& rank : ranks_) {
    if (!rank->plan->rows.empty()) {
      const std::int64_t faster_us = slowest_us - rank->executor.OwnUs();
      costs_.Measure(rank->plan->work, elapsed_us - faster_us);
    }
  }
}

void EngineCore::RunStep(MonotonicUs start_us) {
  load_.step_estimate_us.store(EstimateUs(), std::memory_order_relaxed);
  BuildBatches();
  for (const auto& rank : ranks_) {
    rank->executor.Launch(*rank->batch);
  }
  ShowJudged();  // of the step before
  CountExperts();
  for (const auto& rank : ranks_) {
    rank->result = &rank->executor.Collect();
  }
  const MonotonicUs end_us = clock_.NowUs();
  has_uncounted_pairs_ = true;
  if (!executor_.RunsAhead()) {
    CountExperts();
  }
  Measure(end_us - start_us);
  Bill(end_us - start_us);
  std::int64_t tokens = 0;
  for (const auto& rank : ranks_) {
    FailFaulty(*rank, *rank->result);
    rank->scheduler.Commit(*rank->plan);
    Deliver(*rank, *rank->result, end_us);
    tokens += rank->plan->tokens;
    rank->load.last_step_us.store(ranks_.size() > 1 ? rank->executor.OwnUs() : end_us - start_us,
                                  std::memory_order_relaxed);
  }
  load_.steps.fetch_add(1, std::memory_order_relaxed);
  load_.tokens_computed.fetch_add(tokens, std::memory_order_relaxed);
  load_.last_step_us.store(end_us - start_us, std::memory_order_relaxed);
}

void EngineCore::BuildBatches() {
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    const DataRank& of_rank = *ranks_[rank];
    shapes_[rank] = of_rank.builder.ShapeOf(*of_rank.plan, of_rank.scheduler.sequences());
  }
  if (ranks_.size() > 1) {
    AgreeOnStep(shapes_);
  }
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    DataRank& of_rank = *ranks_[rank];
    of_rank.batch =
        &of_rank.builder.Build(*of_rank.plan, of_rank.scheduler.sequences(), shapes_[rank]);
  }
}

// Ends what was cancelled, aborted or has expired, before anything is planned for it.
void EngineCore::Sweep(MonotonicUs now_us) {
  for (const auto& rank : ranks_) {
    for (std::size_t slot = 0; slot < rank->live.size(); ++slot) {
      const LiveRequest* const live = rank->live[slot].get();
      if (live == nullptr) {
        continue;
      }
      const auto ending = EndingOf(*live, *rank->scheduler.sequences()[slot], now_us);
      if (ending.has_value()) {
        End(*rank, static_cast<std::int32_t>(slot), *ending);
      }
    }
  }
  for (std::size_t index = unbound_.size(); index-- > 0;) {
    const LiveRequest& live = *unbound_[index];
    const auto ending = EndingOf(live, *live.sequence, now_us);
    if (ending.has_value()) {
      EndUnbound(index, *ending);
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
void EngineCore::FailFaulty(DataRank& rank, const StepResult& result) {
  if ((AllFaults(result.row_faults) | AllFaults(result.sample_faults)) == 0) {
    return;
  }
  std::int64_t first_row = 0;
  std::int64_t entry = 0;
  auto given = static_cast<std::int64_t>(rank.plan->sample_rows.size());
  for (const StepPlan::Row& row : rank.plan->rows) {
    std::int32_t faults = 0;
    for (const std::int32_t fault : result.sample_faults.subspan(given, row.prompt_logprobs)) {
      faults |= fault;
    }
    given += row.prompt_logprobs;
    for (const std::int32_t fault : result.row_faults.subspan(first_row, row.tokens)) {
      faults |= fault;
    }
    if (row.samples > 0) {
      faults |= result.sample_faults[entry];
      ++entry;
    }
    first_row += row.tokens;
    if (faults != 0 && rank.scheduler.Find(row.sequence, row.slot) != nullptr) {
      End(rank, row.slot,
          {.reason = FinishReason::kError,
           .error_code = ErrorCode::kInternal,
           .error_message = (faults & kRowFaultIndexerNan) != 0    ? "non-finite index scores"
                            : (faults & kRowFaultNoCandidate) != 0 ? "no token may be sampled"
                                                                   : "non-finite logits"});
    }
  }
}

void EngineCore::Deliver(DataRank& rank, const StepResult& result, MonotonicUs now_us) {
  KeepPromptLogprobs(rank, result);
  EndPrompts(rank, now_us);
  const StepPlan& plan = *rank.plan;
  const auto entries = static_cast<std::int64_t>(plan.sample_rows.size());
  const auto slot_of = [&](std::int64_t entry) { return plan.rows[plan.sample_rows[entry]].slot; };
  for (std::int64_t entry = -kLiveAhead; entry < entries; ++entry) {
    PrefetchDelivery(
        entry, entries, [&](std::int64_t at) { return rank.live[slot_of(at)].get(); },
        [&](std::int64_t at) { return TokenId{result.tokens[at]}; });
    if (const std::int64_t at = entry + kStopAhead; at >= 0 && at < entries) {
      const Sequence* const sequence = rank.scheduler.sequences()[slot_of(at)].get();
      if (sequence != nullptr) {
        sequence->Prefetch();
      }
    }
    if (entry < 0) {
      continue;
    }
    const StepPlan::Row& row = plan.rows[plan.sample_rows[entry]];
    if (rank.scheduler.Find(row.sequence, row.slot) != nullptr) {
      JudgedToken judged = JudgeToken(rank, row.slot, entry, result, now_us);
      if (executor_.RunsAhead()) {
        judged_.push_back(std::move(judged));
      } else {
        ShowToken(judged, result);
      }
    }
  }
  rank.judged_result = result;
}

// What the next plan must know of a token.
EngineCore::JudgedToken EngineCore::JudgeToken(DataRank& rank, std::int32_t slot,
                                               std::int64_t entry, const StepResult& result,
                                               MonotonicUs now_us) {
  LiveRequest& live = *rank.live[slot];
  const Sequence& sequence = *rank.scheduler.sequences()[slot];
  const TokenId token{result.tokens[entry]};
  rank.scheduler.Append(slot, token);
  live.last_token_us = now_us;
  if (live.completion_tokens == 0) {
    live.first_token_us = now_us;
  }
  ++live.completion_tokens;
  JudgedToken judged{.rank = &rank,
                     .live = &live,
                     .ended = nullptr,
                     .slot = slot,
                     .token = token,
                     .first = live.completion_tokens == 1,
                     .entry = entry,
                     .preemptions = sequence.preemptions()};
  if (live.stop->Judge(token, sequence.generated()).has_value()) {
    judged.ended = Release(rank, slot, CachedBlocks::kKeep);
  }
  return judged;
}

// What its client hears of it.
void EngineCore::ShowToken(JudgedToken& judged, const StepResult& result) {
  LiveRequest& live = *judged.live;
  const Sequence& sequence =
      judged.ended != nullptr ? *live.sequence : *judged.rank->scheduler.sequences()[judged.slot];
  OutboxEvent& event = outbox_.Next();
  event.request = &live;
  event.has_token = true;
  event.has_prompt = judged.first && sequence.request().prompt_logprobs.has_value();
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
    judged.ended = Release(*judged.rank, judged.slot, CachedBlocks::kKeep);  // a stop string
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
  const auto entries = static_cast<std::int64_t>(judged_.size());
  for (std::int64_t entry = -kLiveAhead; entry < entries; ++entry) {
    PrefetchDelivery(
        entry, entries, [&](std::int64_t at) { return judged_[at].live; },
        [&](std::int64_t at) { return judged_[at].token; });
    if (entry >= 0 && judged_[entry].live != nullptr) {
      ShowToken(judged_[entry], judged_[entry].rank->judged_result);
    }
  }
  judged_.clear();
  SettleQueue();  // a stop string may have ended somebody: its place is free at once
}

// Ends a request from outside its own tokens.
void EngineCore::End(DataRank& rank, std::int32_t slot, const Ending& ending) {
  LiveRequest& live = *rank.live[slot];
  const auto judged = std::find_if(judged_.begin(), judged_.end(),
                                   [&](const JudgedToken& token) { return token.live == &live; });
  if (judged != judged_.end()) {
    ShowToken(*judged, rank.judged_result);
    judged->live = nullptr;
    if (rank.live[slot] == nullptr) {
      return;  // its text has ended it
    }
  }
  OutboxEvent& event = outbox_.Next();
  SayEnd(live, *rank.scheduler.sequences()[slot], ending, event);
  const bool faulty = ending.reason == FinishReason::kError;
  event.request =  // the outbox's now
      Release(rank, slot, faulty ? CachedBlocks::kForget : CachedBlocks::kKeep).release();
  outbox_.Push(event.request->stop->text(), {});
}

// Likewise where no rank has it.
void EngineCore::EndUnbound(std::size_t index, const Ending& ending) {
  OutboxEvent& event = outbox_.Next();
  SayEnd(*unbound_[index], *unbound_[index]->sequence, ending, event);
  event.request = unbound_[index].release();  // the outbox's now
  unbound_.erase(unbound_.begin() + static_cast<std::ptrdiff_t>(index));
  load_.requests_finished.fetch_add(1, std::memory_order_relaxed);
  outbox_.Push(event.request->stop->text(), {});
}

// What the client hears of it, but for the text that was held back.
void EngineCore::SayEnd(LiveRequest& live, const Sequence& sequence, const Ending& ending,
                        OutboxEvent& event) const {
  live.stop->Flush();
  event.finish = ending.reason;
  event.has_prompt =
      ending.reason == FinishReason::kLength && sequence.request().prompt_logprobs.has_value();
  event.error_code = ending.error_code;
  event.error_message = ending.error_message;
  FillUsage(live, sequence, event.usage);
  if (!sequence.first_scheduled_us().has_value()) {
    event.usage.queue_us = clock_.NowUs() - live.arrival_us;  // it never left the queue
  }
}

void EngineCore::FailLive(ErrorCode code, const char* message) {
  ShowJudged();
  const Ending ending = {
      .reason = FinishReason::kError, .error_code = code, .error_message = message};
  for (const auto& rank : ranks_) {
    for (std::size_t slot = 0; slot < rank->live.size(); ++slot) {
      if (rank->live[slot] != nullptr) {
        End(*rank, static_cast<std::int32_t>(slot), ending);
      }
    }
  }
  while (!unbound_.empty()) {
    EndUnbound(unbound_.size() - 1, ending);
  }
}

void EngineCore::FailArrivals(ErrorCode code, const char* message) {
  DSA_CHECK(outbox_.TryReserve(step_capacity_), "EngineCore: the outbox is not empty");
  AdmitFromInbox();
  FailLive(code, message);
}

// Takes a request that has ended out of the scheduler.
std::unique_ptr<LiveRequest> EngineCore::Release(DataRank& rank, std::int32_t slot,
                                                 CachedBlocks cached_blocks) {
  std::unique_ptr<LiveRequest> live = std::move(rank.live[slot]);
  live->sequence = rank.scheduler.Remove(slot, cached_blocks);
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
  const bool answered =
      live.completion_tokens > 0 || (sequence.only_prompt() && sequence.behind() == 0);
  usage.queue_us = scheduled_us.has_value() ? *scheduled_us - live.arrival_us : 0;
  usage.prefill_us = answered ? live.first_token_us - *scheduled_us : 0;
  usage.decode_us = answered ? live.last_token_us - live.first_token_us : 0;
  usage.cost = live.cost;
}

// Places of the queue follow what waits: taken again by a preempted sequence, and while one waits
// nothing else could start.
void EngineCore::SettleQueue() {
  auto waiting = static_cast<std::int64_t>(unbound_.size());
  std::int64_t running = 0;
  for (const auto& rank : ranks_) {
    waiting += static_cast<std::int64_t>(rank->scheduler.waiting().size());
    running += static_cast<std::int64_t>(rank->scheduler.running().size());
  }
  const std::int64_t places = config_.data_ranks * config_.scheduler.sequences_max;
  inbox_.Settle(waiting - waiting_counted_, waiting > 0 ? 0 : places - running);
  waiting_counted_ = waiting;
}

}  // namespace dsa
