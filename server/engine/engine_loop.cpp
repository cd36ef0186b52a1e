#include "server/engine/engine_loop.h"

#include "common/check.h"
#include "scheduler/validate.h"
#include "server/engine/engine_core.h"
#include "server/engine/wakeup.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#include <fmt/format.h>

namespace dsa {
namespace {

// Steps that the pump may be behind before the engine waits for it.
constexpr std::int64_t kOutboxSteps = 4;
constexpr std::chrono::microseconds kBlockedWait{500};

std::int64_t TextBytesMax(const TextDecoderFactory* decoders) {
  const std::int64_t decoder_bytes = decoders == nullptr ? 0 : decoders->text_bytes_max();
  return StopChecker::TextBytesMax(decoder_bytes);
}

Outbox::Capacity OutboxCapacity(const EngineConfig& config, std::int64_t text_bytes_max) {
  const Outbox::Capacity step = EngineCore::StepCapacity(config, text_bytes_max);
  return {.events = kOutboxSteps * step.events,
          .text_bytes = kOutboxSteps * step.text_bytes,
          .top_logprobs = kOutboxSteps * step.top_logprobs};
}

}  // namespace

struct EngineLoop::State {
  State(const EngineConfig& engine_config, const EngineLoop::Dependencies& dependencies)
      : config(engine_config),
        clock(dependencies.clock),
        decoders(dependencies.decoders),
        inbox({.waiting_max = config.scheduler.waiting_max,
               .sequences_max = config.data_ranks * config.scheduler.sequences_max}),
        outbox(OutboxCapacity(config, TextBytesMax(decoders))),
        core(config, {.executor = dependencies.executor,
                      .clock = clock,
                      .inbox = inbox,
                      .outbox = outbox,
                      .text_bytes_max = TextBytesMax(decoders),
                      .observer = dependencies.observer}) {}

  // Constant after construction.
  const EngineConfig config;
  const Clock& clock;
  const TextDecoderFactory* const decoders;

  // Thread-safe by themselves.
  std::atomic<std::int64_t> requests_made{0};
  Inbox inbox;
  Outbox outbox;
  LiveRegistry registry;
  Wakeup engine_wakeup;
  Wakeup pump_wakeup;
  std::atomic<bool> stop_engine{false};  // set before the wakeup that makes it seen
  std::atomic<bool> stop_pump{false};

  // For the watchdog: hints, which order nothing.
  std::atomic<std::int64_t> rounds{0};  // of the engine that were not blocked
  std::atomic<bool> engine_busy{false};
  std::atomic<std::int64_t> deltas{0};  // delivered
  std::atomic<bool> pump_busy{false};

  // Drain waits here for the last delta.
  std::mutex drained_mutex;
  std::condition_variable drained;

  EngineCore core;  // engine thread, but for what it says

  // Stream pump thread.
  std::string text;
  std::vector<TokenLogprob> top_logprobs;

  // Start and Stop.
  std::thread engine_thread;
  std::thread pump_thread;
};

EngineLoop::EngineLoop(const EngineConfig& config, const Dependencies& dependencies) {
  const Status status = Validate(config);
  DSA_CHECK(status.ok(), "EngineLoop: {}", status.error().message);
  state_ = std::make_unique<State>(config, dependencies);
}

EngineLoop::~EngineLoop() {
  Stop();
}

Status EngineLoop::CheckSubmission(const Request& request) const {
  DSA_RETURN_IF_ERROR(dsa::Validate(request, state_->config.vocabulary));
  if (state_->decoders == nullptr && !request.stop.stop_strings.empty()) {
    return InvalidArgument("stop has strings, but this server has no tokenizer to match them with");
  }
  if (request.prompt_logprobs && state_->config.scheduler.prompt_logprob_rows_max == 0) {
    return InvalidArgument("prompt_logprobs: this server holds no logits of prompts");
  }
  DSA_RETURN_IF_ERROR(state_->core.CheckFits(static_cast<std::int64_t>(request.prompt.size()),
                                             request.stop.max_tokens));
  // Any estimate of what a request will take is wrong for somebody, so none is refused for it.
  if (request.stop.deadline_us && *request.stop.deadline_us <= state_->clock.NowUs()) {
    return Error{ErrorCode::kDeadlineExceeded, "deadline has already passed"};
  }
  return {};
}

Status EngineLoop::SubmitTogether(std::vector<Siblings> prompts) {
  const Error draining{ErrorCode::kUnavailable, "draining"};
  if (state_->inbox.closed()) {
    return draining;
  }
  std::int64_t places = 0;
  for (const Siblings& prompt : prompts) {
    DSA_RETURN_IF_ERROR(CheckSubmission(prompt.request));
    places += static_cast<std::int64_t>(prompt.sinks.size());
  }
  if (places > state_->inbox.places_max()) {  // waiting would not help
    return InvalidArgument(fmt::format("{} requests together, at most {}: so many the queue takes",
                                       places, state_->inbox.places_max()));
  }
  if (!state_->inbox.TryReserve(places)) {
    return Error{
        ErrorCode::kResourceExhausted,
        fmt::format("queue full: {}{} requests are waiting, limit {} beside those that start",
                    places == 1 ? "" : fmt::format("no room for {} together, ", places),
                    state_->inbox.waiting(), state_->config.scheduler.waiting_max)};
  }
  std::vector<std::unique_ptr<LiveRequest>> live;
  try {  // all that a request needs is allocated here
    live.reserve(static_cast<std::size_t>(places));
    for (Siblings& prompt : prompts) {
      MakeSiblings(std::move(prompt), live);
    }
    if (!state_->registry.TryInsert(live)) {
      state_->inbox.ReturnPlaces(places);
      return Error{ErrorCode::kAlreadyExists,
                   fmt::format("request_id {} is live", live.front()->external_id)};
    }
  } catch (const std::bad_alloc&) {
    state_->inbox.ReturnPlaces(places);
    return NoMemoryForRequest();
  }
  if (!state_->inbox.TryPush(live)) {
    for (const std::unique_ptr<LiveRequest>& one : live) {
      state_->registry.Erase(*one);
    }
    state_->inbox.ReturnPlaces(places);
    return draining;
  }
  state_->engine_wakeup.Notify();
  return {};
}

void EngineLoop::MakeSiblings(Siblings&& prompt, std::vector<std::unique_ptr<LiveRequest>>& live) {
  Request& request = prompt.request;
  if (prompt.sinks.size() > 1) {
    request.siblings = request.id;
  }
  for (std::size_t i = 0; i + 1 < prompt.sinks.size(); ++i) {
    live.push_back(MakeLive(request, prompt.sinks[i]));
    request.id = NextRequestId();
    ++request.sampling.seed;
    request.prompt_logits = PromptLogits::kNone;  // the first has them
    request.prompt_logprobs.reset();
  }
  live.push_back(MakeLive(std::move(request), prompt.sinks.back()));
}

std::unique_ptr<LiveRequest> EngineLoop::MakeLive(Request request,
                                                  std::shared_ptr<TokenSink> sink) const {
  request.arrival_us = state_->clock.NowUs();
  auto live = std::make_unique<LiveRequest>();
  live->sink = std::move(sink);
  live->external_id = request.external_id;
  live->deadline_us = request.stop.deadline_us;
  live->arrival_us = request.arrival_us;
  live->wants_logprobs = request.sampling.top_logprobs.has_value();
  live->billed = request.billed;
  if (request.prompt_logprobs.has_value()) {
    for (std::size_t i = 1; i < request.prompt.size(); ++i) {
      live->prompt.push_back({.id = request.prompt[i],
                              .top_logprobs = std::vector<TokenLogprob>(
                                  static_cast<std::size_t>(*request.prompt_logprobs))});
    }
  }
  const TextDecoderFactory* decoders = state_->decoders;
  StopChecker::Text text;
  if (decoders != nullptr) {
    text.decoder = live->sink->MakeDecoder();
    if (text.decoder == nullptr) {
      text.decoder = decoders->Make();
    }
    if (!request.stop.stop_strings.empty()) {
      text.content = live->sink->MakeContentReader();
    }
  }
  live->stop = std::make_unique<StopChecker>(
      request.stop,
      StopChecker::Config{
          .end_ids = state_->config.end_ids,
          .decoder_bytes_max = decoders == nullptr ? 0 : decoders->text_bytes_max()},
      std::move(text));
  live->sequence = std::make_unique<Sequence>(std::move(request), state_->core.hasher());
  return live;
}

RequestId EngineLoop::NextRequestId() {
  return RequestId{state_->requests_made.fetch_add(1, std::memory_order_relaxed)};
}

bool EngineLoop::Abort(const std::string& external_id) {
  return state_->registry.Abort(external_id);
}

EngineLoad EngineLoop::Load() const {
  const LoadCounters& counters = state_->core.load();
  EngineLoad load{.waiting = state_->inbox.waiting(),
                  .steps = counters.steps.load(std::memory_order_relaxed),
                  .tokens_computed = counters.tokens_computed.load(std::memory_order_relaxed),
                  .last_step_us = counters.last_step_us.load(std::memory_order_relaxed),
                  .requests_finished = counters.requests_finished.load(std::memory_order_relaxed),
                  .busy = counters.busy.Load(),
                  .draining = state_->inbox.closed()};
  for (std::int64_t rank = 0; rank < state_->config.data_ranks; ++rank) {
    const RankCounters& of_rank = state_->core.rank(static_cast<std::size_t>(rank)).load;
    load.ranks.push_back(
        {.waiting = of_rank.waiting.load(std::memory_order_relaxed),
         .running = of_rank.running.load(std::memory_order_relaxed),
         .blocks_total = state_->config.blocks,
         .blocks_referenced = of_rank.blocks_referenced.load(std::memory_order_relaxed),
         .blocks_cached = of_rank.blocks_cached.load(std::memory_order_relaxed),
         .rows = of_rank.rows.load(std::memory_order_relaxed),
         .padding_rows = of_rank.padding_rows.load(std::memory_order_relaxed),
         .last_step_us = of_rank.last_step_us.load(std::memory_order_relaxed),
         .expert_pairs = of_rank.expert_pairs.load(std::memory_order_relaxed),
         .expert_pairs_max_over_mean =
             of_rank.expert_pairs_max_over_mean.load(std::memory_order_relaxed)});
    load.running += load.ranks.back().running;
    load.blocks_total += load.ranks.back().blocks_total;
    load.blocks_referenced += load.ranks.back().blocks_referenced;
    load.blocks_cached += load.ranks.back().blocks_cached;
  }
  return load;
}

void EngineLoop::BeginDrain() {
  state_->inbox.Close();
}

void EngineLoop::AbortAll() {
  state_->core.AbortAll();
}

void EngineLoop::Drain(std::int64_t limit_us) {
  BeginDrain();
  const auto empty = [this] { return state_->inbox.live() == 0; };
  std::unique_lock lock(state_->drained_mutex);
  if (!state_->drained.wait_for(lock, std::chrono::microseconds(limit_us), empty)) {
    AbortAll();
    state_->drained.wait(lock, empty);
  }
}

EngineProgress EngineLoop::RunOnce() {
  return state_->core.RunOnce();
}

std::int64_t EngineLoop::PumpOnce() {
  std::int64_t deltas = 0;
  OutboxEvent event;
  State& state = *state_;
  while (state.outbox.Pop(event, state.text, state.top_logprobs)) {
    TokenDelta delta{.text = std::move(state.text), .finish = event.finish, .usage = event.usage};
    if (event.content_bytes_max >= 0) {
      delta.content_bytes_max = event.content_bytes_max;
    }
    if (event.has_prompt) {
      delta.prompt = std::move(event.request->prompt);
    }
    if (event.has_token) {
      delta.tokens.push_back({.id = event.token,
                              .logprob = event.logprob,
                              .text_bytes = event.text_bytes,
                              .top_logprobs = std::move(state.top_logprobs)});
    }
    if (event.error_message != nullptr) {
      delta.error = Error{event.error_code, event.error_message};
    }
    state.text.clear();
    state.top_logprobs.clear();
    ++deltas;
    if (!event.finish.has_value()) {
      event.request->sink->OnDelta(std::move(delta));
      state.deltas.fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    const std::unique_ptr<LiveRequest> ended(event.request);
    state.registry.Erase(*ended);  // first: who sees the end may use the id again
    ended->sink->OnDelta(std::move(delta));
    state.deltas.fetch_add(1, std::memory_order_relaxed);
    {
      const std::lock_guard lock(state.drained_mutex);
      state.inbox.EndOne();
    }
    state.drained.notify_all();
  }
  return deltas;
}

void EngineLoop::Start() {
  DSA_CHECK(!state_->engine_thread.joinable(), "EngineLoop: started twice");
  state_->engine_thread = std::thread([this] { RunEngine(); });
  state_->pump_thread = std::thread([this] { RunPump(); });
}

void EngineLoop::RunEngine() {
  State& state = *state_;
  state.core.BindThread();
  while (!state.stop_engine.load(std::memory_order_acquire)) {
    state.engine_busy.store(true, std::memory_order_relaxed);
    const EngineProgress progress = RunOnce();
    state.pump_wakeup.Notify();
    if (progress != EngineProgress::kBlocked) {
      state.rounds.fetch_add(1, std::memory_order_relaxed);
    }
    if (progress == EngineProgress::kIdle) {
      state.engine_busy.store(false, std::memory_order_relaxed);
      state.engine_wakeup.Wait();
    } else if (progress == EngineProgress::kBlocked) {
      state.engine_wakeup.WaitFor(kBlockedWait);
    }
  }
  state.engine_busy.store(false, std::memory_order_relaxed);
}

void EngineLoop::RunPump() {
  State& state = *state_;
  while (!state.stop_pump.load(std::memory_order_acquire)) {
    state.pump_busy.store(true, std::memory_order_relaxed);
    PumpOnce();
    state.pump_busy.store(false, std::memory_order_relaxed);
    state.pump_wakeup.Wait();
  }
}

void EngineLoop::FailAll(ErrorCode code, const char* message) {
  State& state = *state_;
  BeginDrain();
  state.stop_engine.store(true, std::memory_order_release);
  state.core.FailLive(code, message);
  if (state.pump_thread.joinable()) {
    state.stop_pump.store(true, std::memory_order_release);
    state.pump_wakeup.Notify();
    state.pump_thread.join();
  }
  PumpOnce();  // the pump's role is this thread's now
  state.core.FailArrivals(code, message);
  PumpOnce();
}

LoopActivity EngineLoop::EngineActivity() const {
  return {.done = state_->rounds.load(std::memory_order_relaxed),
          .waiting =
              state_->engine_busy.load(std::memory_order_relaxed) || state_->inbox.has_arrivals(),
          .estimate_us = state_->core.load().step_estimate_us.load(std::memory_order_relaxed)};
}

LoopActivity EngineLoop::PumpActivity() const {
  return {
      .done = state_->deltas.load(std::memory_order_relaxed),
      .waiting = state_->pump_busy.load(std::memory_order_relaxed) || state_->outbox.has_events(),
      .estimate_us = 0};
}

void EngineLoop::Stop() {
  State& state = *state_;
  BeginDrain();
  AbortAll();
  if (state.engine_thread.joinable()) {
    state.stop_engine.store(true, std::memory_order_release);
    state.engine_wakeup.Notify();
    state.engine_thread.join();
    if (state.pump_thread.joinable()) {  // FailAll joins it
      state.stop_pump.store(true, std::memory_order_release);
      state.pump_wakeup.Notify();
      state.pump_thread.join();
    }
  }
  // Both roles are this thread's now.
  state.core.BindThread();
  while (state.inbox.live() > 0) {
    RunOnce();
    PumpOnce();
  }
}

const Scheduler& EngineLoop::scheduler(std::size_t rank) const {
  return state_->core.rank(rank).scheduler;
}

const StepCostModel& EngineLoop::costs() const {
  return state_->core.costs();
}

const BlockPool& EngineLoop::pool(std::size_t rank) const {
  return state_->core.rank(rank).pool;
}

const PrefixCache& EngineLoop::prefix_cache(std::size_t rank) const {
  return state_->core.rank(rank).cache;
}

std::span<const std::unique_ptr<LiveRequest>> EngineLoop::unbound() const {
  return state_->core.unbound();
}

}  // namespace dsa
