#include "tests/sim/simulator.h"

#include "cache/block_pool.h"
#include "scheduler/scheduler.h"
#include "server/engine/live_request.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace dsa::sim {
namespace {

std::uint64_t current_seed = 0;
std::int64_t current_step = 0;

constexpr std::int64_t kQuietSteps = 50000;  // far more than any world needs to end

}  // namespace

void Fail(std::string_view message) {
  fmt::print(stderr, "seed {}, step {}: {}\nreplay with: engine_sim --seed {}\n", current_seed,
             current_step, message, current_seed);
  std::abort();
}

SimStats RunSeed(std::uint64_t seed) {
  current_seed = seed;
  current_step = 0;
  Simulator simulator(DrawConfig(seed));
  simulator.Run();
  return simulator.stats();
}

void Client::OnDelta(TokenDelta&& delta) {
  SIM_CHECK(!finish.has_value(),
            fmt::format("request {} hears more after its end", Value(request.id)));
  SIM_CHECK(delta.prompt.empty() || (tokens.empty() && delta.tokens.size() == 1) ||
                (request.stop.max_tokens == 0 && delta.finish == FinishReason::kLength),
            "log-probabilities of the prompt come neither with the first token nor with the end");
  prompt.insert(prompt.end(), delta.prompt.begin(), delta.prompt.end());
  for (GeneratedToken& token : delta.tokens) {
    tokens.push_back(std::move(token));
  }
  text += delta.text;
  SIM_CHECK(delta.usage.completion_tokens == static_cast<std::int64_t>(tokens.size()),
            "completion tokens are not those delivered");
  usage = delta.usage;
  finish = delta.finish;
  error = delta.error;
}

Simulator::Simulator(const SimConfig& config)
    : config_(config),
      random_(config.seed),
      extras_(config.seed + 1),
      decoders_(config_),
      rank_laws_(config_),
      executors_(
          config_, [this] { rank_laws_.CheckIdle(); },
          [this] {
            rank_laws_.CheckTogether(executors_);
            LiveInFlight();
          }),
      engine_({.scheduler = config.scheduler,
               .blocks = config.blocks,
               .tokens_per_block = config.tokens_per_block,
               .vocabulary = config.vocabulary,
               .end_ids = config.end_ids,
               .cache_identity = "sim",
               .row_buckets = config.row_buckets,
               .data_ranks = config.data_ranks,
               .hash_bits = config.hash_bits},
              {.executor = executors_,
               .clock = clock_,
               .decoders = &decoders_,
               .observer = &rank_laws_}),
      oldest_(executors_.size(), -1),
      idle_for_oldest_(executors_.size(), 0) {
  rank_laws_.Observe(engine_);
  for (std::size_t rank = 0; rank < executors_.size(); ++rank) {
    executors_.At(rank).Observe(engine_.pool(rank), engine_.scheduler(rank), engine_.costs());
  }
  for (std::int64_t family = 0; family < config_.families; ++family) {
    std::vector<TokenId> tokens;
    for (std::int64_t i = 0; i < config_.prompt_max; ++i) {
      tokens.push_back(
          TokenId{static_cast<std::int32_t>(random_.Between(4, config_.vocabulary - 1))});
    }
    families_.push_back(std::move(tokens));
  }
}

void Simulator::Run() {
  for (std::int64_t step = 0; step < config_.busy_steps; ++step) {
    if (random_.Chance(config_.arrival_percent)) {
      Arrive();
    }
    DisturbLive();
    Step();
    drain_in_flight_ = drain_in_flight_ || (config_.drain && step == config_.busy_steps - 20);
  }
  abort_in_flight_ = config_.drain && random_.Chance(50);
  // Nothing else disturbs any more: everything must end.
  for (std::int64_t step = 0; LiveClients() > 0; ++step) {
    SIM_CHECK(step < kQuietSteps, fmt::format("{} requests never end", LiveClients()));
    Step();
  }
  CheckQuiet();
}

// All ranks wait for the slowest, which may be one that has nothing to do.
std::int64_t Simulator::StepUs() {
  if (!config_.timed()) {
    return random_.Between(1, 50);
  }
  const std::int64_t noise = config_.costs.noise_percent;
  std::int64_t us = 0;
  for (std::size_t rank = 0; rank < executors_.size(); ++rank) {
    FakeExecutor& executor = executors_.At(rank);
    const double own_us = executor.times().TrueUs(current_step, random_.Between(-noise, noise));
    executor.own_us = static_cast<std::int64_t>(own_us);
    us = std::max(us, executor.own_us);
    if (executor.launched().rows > 0) {
      executor.times().CheckDuration(executor.own_us);
      for (std::size_t other = 0; other < executors_.size(); ++other) {
        executors_.At(other).times().Learn(executor.times().work());
      }
    }
  }
  return us;
}

// A step takes time, and the world does not wait for it.  What is asked for meanwhile must neither
// change the step nor free what it writes.
void Simulator::LiveInFlight() {
  clock_.now_us += StepUs();
  if (drain_in_flight_) {
    engine_.BeginDrain();
    draining_ = true;
    drain_in_flight_ = false;
  }
  if (abort_in_flight_) {
    engine_.AbortAll();
    for (const auto& client : live_) {
      client->aborted = true;
    }
    abort_in_flight_ = false;
  }
  if (current_step > config_.busy_steps) {
    return;
  }
  if (random_.Chance(config_.in_flight_percent)) {
    DisturbLive();
  }
  if (random_.Chance(config_.in_flight_percent)) {
    const std::int64_t accepted_before = stats_.requests - stats_.refused;
    Arrive();
    arrived_in_flight_ = stats_.requests - stats_.refused - accepted_before;
  }
}

std::int64_t Simulator::LiveClients() const {
  return static_cast<std::int64_t>(live_.size());
}

void Simulator::Arrive() {
  for (std::int64_t i = random_.Between(1, config_.burst_max); i > 0; --i) {
    const Request request = DrawRequest();
    Submit(request, extras_.Chance(config_.sibling_percent) ? extras_.Between(2, 6) : 1);
  }
}

Request Simulator::DrawRequest() {
  Request request;
  request.id = engine_.NextRequestId();
  request.external_id = fmt::format("r{}", requests_made_++);
  if (!live_.empty() && random_.Chance(config_.duplicate_percent)) {
    request.external_id = live_[random_.Between(0, LiveClients() - 1)]->request.external_id;
  }
  auto& family = families_[random_.Between(0, config_.families - 1)];
  const std::int64_t shared = random_.Between(0, static_cast<std::int64_t>(family.size()));
  const std::int64_t length = random_.Between(1, config_.prompt_max);
  request.prompt.assign(family.begin(), family.begin() + std::min(shared, length));
  while (static_cast<std::int64_t>(request.prompt.size()) < length) {
    const std::int64_t lowest = random_.Chance(3) ? 3 : 4;  // 3 may be the poison
    request.prompt.push_back(
        TokenId{static_cast<std::int32_t>(random_.Between(lowest, config_.vocabulary - 1))});
  }
  request.cache_salt = fmt::format("t{}", random_.Between(1, config_.tenants));
  request.priority = static_cast<std::int32_t>(random_.Between(0, 2));
  request.sampling.temperature = random_.Chance(50) ? 0.0F : 1.0F;
  request.sampling.seed = random_.Bits();
  if (random_.Chance(20)) {
    request.sampling.top_logprobs = static_cast<std::int32_t>(random_.Between(0, 20));
  }
  if (random_.Chance(5)) {
    request.prompt_logits = PromptLogits::kAll;
  }
  if (extras_.Chance(config_.penalty_percent)) {
    DrawPenalties(request.sampling);
  }
  if (extras_.Chance(config_.prompt_logprob_percent)) {
    request.prompt_logprobs = static_cast<std::int32_t>(extras_.Between(0, 8));
  }
  StopConditions& stop = request.stop;
  stop.max_tokens = random_.Between(1, config_.reply_max);
  stop.min_tokens = random_.Chance(70) ? 0 : random_.Between(0, stop.max_tokens);
  stop.ignore_end = random_.Chance(50);
  if (random_.Chance(config_.stop_percent)) {
    stop.stop_ids.push_back(
        TokenId{static_cast<std::int32_t>(random_.Between(0, config_.vocabulary - 1))});
  }
  while (random_.Chance(config_.stop_percent) && stop.stop_strings.size() < 4) {
    std::string text;
    for (std::int64_t i = random_.Between(1, 5); i > 0; --i) {
      text += "aabbc<"[random_.Between(0, 5)];
    }
    stop.stop_strings.push_back(text);
  }
  if (extras_.Chance(config_.only_prompt_percent)) {
    stop.max_tokens = 0;
    stop.min_tokens = 0;
  }
  if (random_.Chance(config_.deadline_percent)) {
    constexpr std::int64_t kLonger = 100;  // are the steps of worlds with a budget of time
    stop.deadline_us = clock_.now_us + random_.Between(-5, 1500) * (config_.timed() ? kLonger : 1);
  }
  return request;
}

std::int64_t Simulator::WaitingIn() const {
  auto waiting = static_cast<std::int64_t>(engine_.unbound().size());
  for (std::size_t rank = 0; rank < executors_.size(); ++rank) {
    waiting += static_cast<std::int64_t>(engine_.scheduler(rank).waiting().size());
  }
  return waiting;
}

std::int64_t Simulator::RunningIn() const {
  std::int64_t running = 0;
  for (std::size_t rank = 0; rank < executors_.size(); ++rank) {
    running += static_cast<std::int64_t>(engine_.scheduler(rank).running().size());
  }
  return running;
}

// As many may wait as the queue has places, and as many more as could start at once.
bool Simulator::IsFull(std::int64_t requests) const {
  const std::int64_t places = config_.data_ranks * config_.scheduler.sequences_max;
  const std::int64_t startable = WaitingIn() == 0 ? places - RunningIn() : 0;
  return engine_.Load().waiting + requests > config_.scheduler.waiting_max + startable;
}

void Simulator::Submit(const Request& request, std::int64_t answers) {
  const bool duplicate = std::any_of(live_.begin(), live_.end(), [&](const auto& client) {
    return client->request.external_id == request.external_id;
  });
  std::vector<std::shared_ptr<Client>> clients;
  for (std::int64_t i = 0; i < answers; ++i) {
    clients.push_back(std::make_shared<Client>());
    clients.back()->request = request;
    clients.back()->request.id = RequestId{Value(request.id) + i};
    clients.back()->request.sampling.seed += static_cast<std::uint64_t>(i);
    if (i > 0) {
      clients.back()->request.prompt_logits = PromptLogits::kNone;
      clients.back()->request.prompt_logprobs.reset();
    }
  }
  const bool full = IsFull(answers);
  const std::vector<std::shared_ptr<TokenSink>> sinks(clients.begin(), clients.end());
  const Status status = answers == 1 ? engine_.Submit(request, sinks.front())
                                     : engine_.SubmitSiblings(request, sinks);
  stats_.requests += answers;
  if (!status.ok()) {
    stats_.refused += answers;
    CheckRefusal(status.error(), *clients.front(), answers, duplicate);
    return;
  }
  SIM_CHECK(!duplicate, "a live id is accepted twice");
  SIM_CHECK(!full, "a full queue accepts a request");
  SIM_CHECK(!draining_, "a draining engine accepts a request");
  stats_.siblings += answers - 1;
  live_.insert(live_.end(), clients.begin(), clients.end());
}

void Simulator::CheckRefusal(const Error& error, const Client& client, std::int64_t answers,
                             bool duplicate) {
  const Request& request = client.request;
  const std::int64_t length = static_cast<std::int64_t>(request.prompt.size());
  const std::int64_t all = length + request.stop.max_tokens;
  const std::int64_t computed = std::max(length, all - 1);
  const std::int64_t keys = std::int64_t{config_.blocks} * config_.tokens_per_block;
  const std::int64_t places = config_.data_ranks * config_.scheduler.sequences_max;
  switch (error.code) {
    case ErrorCode::kUnavailable: SIM_CHECK(draining_, "refused as draining"); break;
    case ErrorCode::kInvalidArgument:
      SIM_CHECK(all > config_.scheduler.context_tokens_max || computed > keys ||
                    answers > config_.scheduler.waiting_max + places,
                "refused what would fit: " + error.message);
      break;
    case ErrorCode::kDeadlineExceeded:
      SIM_CHECK(request.stop.deadline_us.has_value() && *request.stop.deadline_us <= clock_.now_us,
                "refused a deadline that has not passed: " + error.message);
      break;
    case ErrorCode::kAlreadyExists: SIM_CHECK(duplicate, "refused a fresh id"); break;
    case ErrorCode::kResourceExhausted:
      SIM_CHECK(IsFull(answers), "refused as full: " + error.message);
      break;
    default: Fail("refused with an unexpected error: " + error.message);
  }
}

void Simulator::DisturbLive() {
  if (live_.empty()) {
    return;
  }
  const auto pick = [&]() -> Client& { return *live_[random_.Between(0, LiveClients() - 1)]; };
  if (random_.Chance(config_.cancel_percent)) {
    pick().Cancel();
  }
  if (random_.Chance(config_.abort_percent)) {
    Client& client = pick();
    SIM_CHECK(engine_.Abort(client.request.external_id), "a live request cannot be aborted");
    for (const auto& other : live_) {  // with its siblings
      other->aborted = other->aborted || other->request.external_id == client.request.external_id;
    }
  }
}

void Simulator::MarkMustEnd() {
  for (const auto& client : live_) {
    const auto& deadline = client->request.stop.deadline_us;
    client->must_end = client->cancelled() || client->aborted ||
                       (deadline.has_value() && *deadline <= clock_.now_us);
  }
}

bool Simulator::Step() {
  ++current_step;
  clock_.now_us += random_.Between(0, 20);
  MarkMustEnd();
  arrived_in_flight_ = 0;
  const std::int64_t tokens_before = engine_.Load().tokens_computed;
  rank_laws_.BeginStep();
  const EngineProgress progress = engine_.RunOnce();
  ++stats_.steps;
  stats_.tokens += engine_.Load().tokens_computed - tokens_before;
  if (progress != EngineProgress::kBlocked) {
    CheckAfterStep(progress);
  }
  if (progress == EngineProgress::kBlocked || random_.Chance(config_.pump_percent) ||
      current_step > config_.busy_steps) {
    engine_.PumpOnce();
    for (const auto& client : live_) {
      if (client->finish.has_value()) {
        CheckEnded(*client);
      }
    }
    std::erase_if(live_, [](const auto& client) { return client->finish.has_value(); });
  }
  return progress == EngineProgress::kStepped;
}

void Simulator::CheckAfterStep(EngineProgress progress) {
  const std::int64_t live = WaitingIn() + RunningIn();
  SIM_CHECK(progress == EngineProgress::kStepped || live == 0,
            fmt::format("{} sequences are live and nothing is computed", live));
  SIM_CHECK(engine_.Load().waiting == WaitingIn() + arrived_in_flight_,
            "the queue is not as long as it is said to be");
  for (const auto& unbound : engine_.unbound()) {
    CheckMayLive(*unbound->sequence);
  }
  for (std::size_t rank = 0; rank < executors_.size(); ++rank) {
    CheckRank(rank, progress);
  }
  standings_.clear();
  for (std::size_t rank = 0; rank < executors_.size(); ++rank) {
    for (const auto& sequence : engine_.scheduler(rank).sequences()) {
      if (sequence != nullptr) {
        standings_[Value(sequence->request().id)] = {.state = sequence->state(),
                                                     .computed = sequence->computed(),
                                                     .tokens = sequence->tokens()};
      }
    }
  }
}

void Simulator::CheckMayLive(const Sequence& sequence) const {
  const auto client = std::find_if(live_.begin(), live_.end(), [&](const auto& one) {
    return one->request.id == sequence.request().id;
  });
  SIM_CHECK(client != live_.end(), "a sequence lives longer than its request");
  SIM_CHECK(!(*client)->must_end, "a request that had to end goes on");
}

void Simulator::CheckRank(std::size_t rank, EngineProgress progress) {
  const Scheduler& scheduler = engine_.scheduler(rank);
  scheduler.CheckInvariants();
  SIM_CHECK(
      static_cast<std::int64_t>(scheduler.running().size()) <= config_.scheduler.sequences_max,
      "more sequences run than may");
  for (const auto& sequence : scheduler.sequences()) {
    if (sequence == nullptr) {
      continue;
    }
    CheckMayLive(*sequence);
    SIM_CHECK(sequence->preemptions() <= config_.scheduler.preemptions_max,
              "a sequence is preempted too often");
    SIM_CHECK(
        sequence->preemptions() == 0 || config_.scheduler.reservation == ReservationMode::kPrompt,
        "a fully reserved sequence is preempted");
  }
  CheckOldest(rank, progress);
}

// Under first come the oldest sequence advances in every second step at least, unless a younger one
// has used up its preemptions and holds its reservation, or has passed it.
void Simulator::CheckOldest(std::size_t rank, EngineProgress progress) {
  const Sequence* oldest = nullptr;
  bool reserved = false;
  for (const auto& sequence : engine_.scheduler(rank).sequences()) {
    if (sequence != nullptr) {
      reserved = reserved || sequence->fully_reserved() || sequence->passed();
      if (oldest == nullptr || sequence->id() < oldest->id()) {
        oldest = sequence.get();
      }
    }
  }
  if (oldest == nullptr || progress != EngineProgress::kStepped || reserved ||
      config_.scheduler.policy != SchedulingPolicyKind::kFirstCome) {
    idle_for_oldest_[rank] = 0;
    return;
  }
  const std::int64_t request = Value(oldest->request().id);
  const auto standing = standings_.find(request);
  const bool same = standing != standings_.end() && oldest_[rank] == request &&
                    standing->second.computed == oldest->computed() &&
                    standing->second.tokens == oldest->tokens();
  oldest_[rank] = request;
  idle_for_oldest_[rank] = same ? idle_for_oldest_[rank] + 1 : 0;
  SIM_CHECK(idle_for_oldest_[rank] < 2, fmt::format("request {}, the oldest, starves", request));
}

void Simulator::CheckQuiet() {
  for (std::size_t rank = 0; rank < executors_.size(); ++rank) {
    executors_.At(rank).times().CheckTruth();
    stats_.longest_wait_percent =
        std::max(stats_.longest_wait_percent, executors_.At(rank).waits().longest_wait_percent());
    SIM_CHECK(engine_.pool(rank).referenced_blocks() == 0, "blocks are still referenced");
    engine_.pool(rank).CheckInvariants();
  }
  stats_.bound_elsewhere = rank_laws_.bound_elsewhere();
  const EngineLoad load = engine_.Load();
  SIM_CHECK(load.waiting == 0 && load.running == 0, "something is left in the queues");
  SIM_CHECK(load.requests_finished == stats_.requests - stats_.refused,
            "requests finished are not those accepted");
}

}  // namespace dsa::sim
