#include "tests/sim/wait_laws.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include <fmt/format.h>

namespace dsa::sim {
namespace {

constexpr std::int64_t kPromptTokensMin = 16;  // of a step that is full of time

// Tokens that it must still catch up with before its next own one; a reply's next is none.
std::int64_t CatchUpTokens(const Sequence& sequence) {
  return sequence.behind() > 1 ? sequence.behind() : 0;
}

}  // namespace

// Ids count the requests as they were submitted, whatever the scheduler makes of them.
bool WaitLaws::Before(const Sequence& a, const Sequence& b) const {
  const bool priority = config_.scheduler.policy == SchedulingPolicyKind::kPriority;
  if (priority && a.request().priority != b.request().priority) {
    return a.request().priority < b.request().priority;
  }
  return IdOf(a) < IdOf(b);
}

std::int64_t WaitLaws::BlocksFor(std::int64_t tokens) const {
  return (tokens + config_.tokens_per_block - 1) / config_.tokens_per_block;
}

std::int64_t WaitLaws::PreemptionsLeft(const Sequence& sequence) const {
  const bool reserved =
      sequence.fully_reserved() || config_.scheduler.reservation == ReservationMode::kFull;
  return reserved ? 0 : config_.scheduler.preemptions_max - sequence.preemptions();
}

void WaitLaws::AddAhead(const Sequence& ahead, Stay& stay) const {
  const std::int64_t preemptions = PreemptionsLeft(ahead);
  const std::int64_t again = preemptions * ahead.computed_max();
  stay.tokens_left += ahead.computed_max() - ahead.computed() + again;
  stay.preemptions_left += preemptions;
  if (ahead.request().siblings.has_value()) {
    stay.preemptions_left += 1 + preemptions;
  }
  // One that wants none has its prompt's last token for it.
  stay.replies_left +=
      std::max<std::int64_t>(1, ahead.request().stop.max_tokens) - ahead.generated();
  stay.catch_up_tokens += CatchUpTokens(ahead) + again;
  stay.blocks_max = std::max(stay.blocks_max, BlocksFor(ahead.computed_max()));
}

WaitLaws::Stay WaitLaws::BeginStay(const Sequence& sequence, const Scheduler& scheduler) const {
  const bool waits = sequence.state() == SequenceState::kWaiting;
  Stay stay{.state = sequence.state(),
            .preemptions = sequence.preemptions(),
            .blocks_max = BlocksFor(sequence.computed_max()),
            .prompts_us = times_.prompts_us(),
            .overtaken_us = times_.overtaken_us()};
  for (const Sequence* running : scheduler.running()) {
    if (waits || Before(*running, sequence)) {
      AddAhead(*running, stay);
    }
  }
  for (const Sequence* waiting : scheduler.waiting()) {
    if ((waits || sequence.passed()) && Before(*waiting, sequence)) {
      AddAhead(*waiting, stay);
    }
  }
  stay.catch_up_tokens += CatchUpTokens(sequence);
  return stay;
}

std::int64_t WaitLaws::BoundOf(const Stay& stay) const {
  const SchedulerConfig& scheduler = config_.scheduler;
  std::int64_t least =
      config_.timed() ? kPromptTokensMin : std::numeric_limits<std::int64_t>::max();
  if (config_.prompt_logprob_percent > 0) {
    least = std::min(least, config_.scheduler.prompt_logprob_rows_max);
  }
  if (stay.state == SequenceState::kRunning) {
    return stay.catch_up_tokens /
               std::min(least, scheduler.step_tokens_max - scheduler.sequences_max + 1) +
           1;
  }
  const std::int64_t together = std::min(
      scheduler.sequences_max, (config_.blocks - stay.blocks_max) / (stay.blocks_max + 1) + 1);
  return stay.tokens_left / std::min(least, scheduler.step_tokens_max) + stay.preemptions_left +
         stay.replies_left / together;
}

// Whether it did not run after the last plan.
bool WaitLaws::IsFresh(const Sequence& sequence) const {
  const auto stay = stays_.find(IdOf(sequence));
  return stay == stays_.end() || stay->second.state == SequenceState::kWaiting;
}

void WaitLaws::CheckOrder(const Scheduler& scheduler) const {
  for (const Sequence* running : scheduler.running()) {
    for (const Sequence* waiting : scheduler.waiting()) {
      SIM_CHECK(
          !IsFresh(*running) || running->passed() || Before(*running, *waiting),
          fmt::format("request {} starts before {}, which waits", IdOf(*running), IdOf(*waiting)));
    }
  }
}

// Who passed others has left place and blocks for the first of them, where that did not start too.
void WaitLaws::CheckPassing(const Scheduler& scheduler, const BlockPool& pool) const {
  bool passed = false;
  for (const Sequence* running : scheduler.running()) {
    if (IsFresh(*running) && !running->passed()) {
      return;
    }
    passed = passed || IsFresh(*running);
  }
  if (!passed) {
    return;
  }
  SIM_CHECK(!scheduler.waiting().empty(), "a request has passed nobody");
  const Sequence& first = *scheduler.waiting().front();
  SIM_CHECK(static_cast<std::int64_t>(scheduler.running().size()) < config_.scheduler.sequences_max,
            fmt::format("request {} loses its place to others", IdOf(first)));
  SIM_CHECK(BlocksToStart(first) + SpareBlocks(scheduler) <= pool.available_blocks(),
            fmt::format("request {} loses its blocks to others", IdOf(first)));
}

std::int64_t WaitLaws::SpareBlocks(const Scheduler& scheduler) {
  return std::count_if(scheduler.running().begin(), scheduler.running().end(),
                       [](const Sequence* sequence) { return !sequence->fully_reserved(); });
}

// Those that ran before come first, whatever the priority of those that start; but those that
// passed others come after them.
std::vector<PromptGrant> WaitLaws::PromptsOf(const Scheduler& scheduler,
                                             std::span<const std::int64_t> granted) const {
  std::vector<const Sequence*> started;
  std::vector<const Sequence*> others;
  for (const Sequence* sequence : scheduler.running()) {
    if (IsFresh(*sequence) && !sequence->passed()) {
      started.push_back(sequence);
    } else if (IsFresh(*sequence) || sequence->behind() > 1) {
      others.push_back(sequence);
    }
  }
  const auto before = [this](const Sequence* a, const Sequence* b) { return Before(*a, *b); };
  std::sort(started.begin(), started.end(), before);
  std::sort(others.begin(), others.end(), [this](const Sequence* a, const Sequence* b) {
    return IsFresh(*a) != IsFresh(*b) ? IsFresh(*b) : Before(*a, *b);
  });
  std::vector<PromptGrant> prompts;
  std::int64_t logits_left = config_.scheduler.prompt_logprob_rows_max;
  auto start = started.begin();
  auto other = others.begin();
  bool is_short = false;
  while (start != started.end() || other != others.end()) {
    const bool starts = start != started.end() &&
                        (other == others.end() || ((*other)->passed() && before(*start, *other)));
    const Sequence* sequence = starts ? *start++ : *other++;
    const std::int64_t tokens = granted[sequence->slot()];
    const std::int64_t lacks = sequence->behind();
    const std::int64_t possible =
        LogitsNeeded(*sequence, lacks) <= logits_left ? lacks : logits_left;
    prompts.push_back({.sequence = sequence,
                       .tokens = tokens,
                       .possible = possible,
                       .overtakes = is_short && tokens > 0});
    is_short = is_short || tokens < possible;
    logits_left -= LogitsNeeded(*sequence, tokens);
  }
  return prompts;
}

void WaitLaws::CheckGrants(const Scheduler& scheduler, const BlockPool& pool,
                           std::span<const std::int64_t> granted, bool preempted) {
  std::int64_t decoding = 0;
  for (const Sequence* sequence : scheduler.running()) {
    if (sequence->behind() == 1) {
      SIM_CHECK(granted[sequence->slot()] == 1,
                fmt::format("request {} is a token behind and gets none", IdOf(*sequence)));
      decoding += IsFresh(*sequence) ? 0 : 1;
    }
  }
  const std::vector<PromptGrant> prompts = PromptsOf(scheduler, granted);
  const PromptGrant* held_back = nullptr;
  const PromptGrant* const first = FirstWithLogits(prompts);
  for (const PromptGrant& prompt : prompts) {
    SIM_CHECK(!prompt.overtakes ||
                  (config_.timed() && held_back == first && !IsFresh(*held_back->sequence) &&
                   !prompt.sequence->request().prompt_logprobs.has_value() &&
                   prompt.sequence->behind() < held_back->sequence->behind()),
              fmt::format("request {} overtakes a prompt", IdOf(*prompt.sequence)));
    SIM_CHECK(prompt.overtakes || !prompt.sequence->passed() || !IsFresh(*prompt.sequence) ||
                  FirstCannotStart(scheduler, granted),
              fmt::format("request {} starts before others", IdOf(*prompt.sequence)));
    if (held_back == nullptr && prompt.tokens < prompt.possible) {
      held_back = &prompt;
    }
  }
  if (!config_.timed()) {
    SIM_CHECK(held_back == nullptr || budget_left_ == 0,
              "a prompt is held back although there is a budget");
    return;
  }
  times_.CheckPlan(scheduler, prompts, decoding, budget_left_);
  if (times_.newcomers_wait()) {
    CheckNewcomers(scheduler, pool, prompts, preempted);
  }
}

// The first that has more logits than it can use, if it gets all that are possible to those before.
const PromptGrant* WaitLaws::FirstWithLogits(const std::vector<PromptGrant>& prompts) {
  const auto first = std::find_if(prompts.begin(), prompts.end(), [](const PromptGrant& prompt) {
    return prompt.tokens < prompt.possible || prompt.possible == prompt.sequence->behind();
  });
  return first == prompts.end() ? nullptr : &*first;
}

std::int64_t WaitLaws::LogitsLeft(const Scheduler& scheduler,
                                  std::span<const std::int64_t> granted) const {
  std::int64_t left = config_.scheduler.prompt_logprob_rows_max;
  for (const Sequence* running : scheduler.running()) {
    left -= LogitsNeeded(*running, granted[running->slot()]);
  }
  return left;
}

// Whether a step cannot compute a token of it, whatever time, tokens and blocks there are.
bool WaitLaws::CannotStart(const Sequence& waiting, const Scheduler& scheduler,
                           std::span<const std::int64_t> granted) const {
  return AwaitsSibling(waiting, scheduler) ||
         LogitsNeeded(waiting, 1) > LogitsLeft(scheduler, granted);
}

bool WaitLaws::FirstCannotStart(const Scheduler& scheduler,
                                std::span<const std::int64_t> granted) const {
  const Sequence* first = FirstWaiting(scheduler, [](const Sequence&) { return true; });
  return first != nullptr && CannotStart(*first, scheduler, granted);
}

const Sequence* WaitLaws::FirstWaiting(
    const Scheduler& scheduler, const std::function<bool(const Sequence&)>& is_wanted) const {
  const Sequence* first = nullptr;
  for (const Sequence* waiting : scheduler.waiting()) {
    if (is_wanted(*waiting) && (first == nullptr || Before(*waiting, *first))) {
      first = waiting;
    }
  }
  return first;
}

// Newcomers have something of their share left, and nobody got any.
void WaitLaws::CheckNewcomers(const Scheduler& scheduler, const BlockPool& pool,
                              const std::vector<PromptGrant>& prompts, bool preempted) const {
  const PromptGrant* const held_back = FirstWithLogits(prompts);
  if (held_back == nullptr || held_back->tokens == held_back->possible) {
    return;
  }
  const Sequence& first = *held_back->sequence;
  if (IsFresh(first) || first.passed()) {
    return;
  }
  const auto is_candidate = [&](const Sequence& sequence) {
    return sequence.behind() < first.behind() && !sequence.request().prompt_logprobs.has_value();
  };
  for (const PromptGrant& prompt : prompts) {
    SIM_CHECK(prompt.tokens == prompt.possible || !is_candidate(*prompt.sequence),
              fmt::format("request {} does not get its share", IdOf(*prompt.sequence)));
  }
  const auto running = static_cast<std::int64_t>(scheduler.running().size());
  if (preempted || scheduler.waiting().empty() || running + 2 > config_.scheduler.sequences_max) {
    return;
  }
  const Sequence* shortest = nullptr;
  for (const Sequence* waiting : scheduler.waiting()) {
    if ((shortest == nullptr || waiting->behind() < shortest->behind()) && is_candidate(*waiting) &&
        !AwaitsSibling(*waiting, scheduler)) {
      shortest = waiting;
    }
  }
  if (shortest == nullptr) {
    return;
  }
  const std::int64_t need =
      BlocksToStart(*shortest) + 1 + BlocksToStart(*scheduler.waiting().front());
  SIM_CHECK(need + SpareBlocks(scheduler) > pool.available_blocks(),
            fmt::format("request {} is short and waits for a long one", IdOf(*shortest)));
}

std::int64_t WaitLaws::BlocksToStart(const Sequence& sequence) const {
  const bool full = config_.scheduler.reservation == ReservationMode::kFull ||
                    sequence.preemptions() >= config_.scheduler.preemptions_max;
  return BlocksFor(full ? sequence.computed_max() : sequence.tokens());
}

// Whether one of its siblings that was submitted before still has to compute what both can share.
bool WaitLaws::AwaitsSibling(const Sequence& sequence, const Scheduler& scheduler) const {
  const std::int64_t shared = (sequence.prompt_tokens() - 1) / config_.tokens_per_block;
  return sequence.request().siblings.has_value() &&
         std::any_of(
             scheduler.sequences().begin(), scheduler.sequences().end(),
             [&](const std::unique_ptr<Sequence>& other) {
               return other != nullptr &&
                      other->request().siblings == sequence.request().siblings &&
                      IdOf(*other) < IdOf(sequence) &&
                      (other->computed() / config_.tokens_per_block < shared ||
                       (other->request().prompt_logprobs.has_value() && other->generated() == 0));
             });
}

void WaitLaws::CheckSiblings(const Scheduler& scheduler) const {
  for (const Sequence* running : scheduler.running()) {
    SIM_CHECK(
        !IsFresh(*running) || !AwaitsSibling(*running, scheduler),
        fmt::format("request {} starts beside a sibling that computes the prompt", IdOf(*running)));
  }
}

// Who waits could not start, and neither could the first of those that may pass it.
void WaitLaws::CheckWork(const Scheduler& scheduler, const BlockPool& pool,
                         std::span<const std::int64_t> granted) const {
  const auto running = static_cast<std::int64_t>(scheduler.running().size());
  if (scheduler.waiting().empty() || budget_left_ == 0 ||
      (config_.timed() && times_.is_used_up()) || running == config_.scheduler.sequences_max) {
    return;
  }
  const Sequence* first = FirstWaiting(scheduler, [](const Sequence&) { return true; });
  const Sequence* next = FirstWaiting(scheduler, [&](const Sequence& waiting) {
    const bool may_pass = !waiting.request().prompt_logprobs.has_value();
    return (may_pass || &waiting == first) && !CannotStart(waiting, scheduler, granted);
  });
  if (next == nullptr || (next != first && running + 2 > config_.scheduler.sequences_max)) {
    return;
  }
  const std::int64_t need = BlocksToStart(*next) + (next == first ? 0 : 1 + BlocksToStart(*first));
  const std::int64_t spare = SpareBlocks(scheduler);
  SIM_CHECK(need + spare > pool.available_blocks(),
            fmt::format("request {} waits for {} blocks and {} spare ones, {} are available",
                        IdOf(*next), need, spare, pool.available_blocks()));
}

void WaitLaws::CheckBounds(const Scheduler& scheduler) {
  std::map<std::int64_t, Stay> stays;
  std::vector<const Sequence*> arrived;
  std::vector<const Sequence*> passed;  // others that wait
  for (const auto& sequence : scheduler.sequences()) {
    if (sequence == nullptr) {
      continue;
    }
    const auto known = stays_.find(IdOf(*sequence));
    if (known == stays_.end()) {
      arrived.push_back(sequence.get());
    }
    const bool starts = sequence->state() == SequenceState::kRunning &&
                        (known == stays_.end() || known->second.state == SequenceState::kWaiting);
    if (starts && sequence->passed()) {
      passed.push_back(sequence.get());
    }
    if (known == stays_.end() || known->second.state != sequence->state()) {
      stays[IdOf(*sequence)] = BeginStay(*sequence, scheduler);
      continue;
    }
    Stay& stay = stays[IdOf(*sequence)] = known->second;
    ++stay.steps;
  }
  for (const auto& sequence : scheduler.sequences()) {
    if (sequence == nullptr || !stays_.contains(IdOf(*sequence))) {
      continue;
    }
    Stay& stay = stays[IdOf(*sequence)];
    for (const Sequence* newcomer : arrived) {
      if (stay.steps > 0 && Before(*newcomer, *sequence)) {
        AddAhead(*newcomer, stay);
      }
    }
    const bool waits = stay.state == SequenceState::kWaiting;
    for (const Sequence* newcomer : passed) {
      if (waits && stay.steps > 0 && Before(*sequence, *newcomer)) {
        AddAhead(*newcomer, stay);
      }
    }
    if (!waits && sequence->behind() == 1) {
      stay.steps = 0;
      continue;
    }
    if (config_.timed()) {
      times_.CheckShare(stay.prompts_us, stay.overtaken_us);
    }
    const std::int64_t bound = BoundOf(stay);
    SIM_CHECK(stay.steps <= bound,
              fmt::format("request {} {} for {} steps, at most {} are due", IdOf(*sequence),
                          waits ? "waits" : "catches up", stay.steps, bound));
    if (waits && bound >= 10) {
      longest_wait_percent_ = std::max(longest_wait_percent_, 100 * stay.steps / bound);
    }
  }
  stays_ = std::move(stays);
}

void WaitLaws::CheckPlan(const Scheduler& scheduler, const BlockPool& pool,
                         std::span<const std::int64_t> granted) {
  budget_left_ = config_.scheduler.step_tokens_max -
                 std::accumulate(granted.begin(), granted.end(), std::int64_t{0});
  bool preempted = false;
  for (const auto& sequence : scheduler.sequences()) {
    if (sequence == nullptr) {
      continue;
    }
    const auto known = stays_.find(IdOf(*sequence));
    const std::int32_t before = known == stays_.end() ? 0 : known->second.preemptions;
    const bool now = known != stays_.end() && known->second.state == SequenceState::kRunning &&
                     sequence->state() == SequenceState::kWaiting;
    SIM_CHECK(
        sequence->preemptions() == before + (now ? 1 : 0),
        fmt::format("request {} counts {} preemptions", IdOf(*sequence), sequence->preemptions()));
    preempted = preempted || now;
  }
  CheckOrder(scheduler);
  CheckSiblings(scheduler);
  CheckPassing(scheduler, pool);
  CheckGrants(scheduler, pool, granted, preempted);
  if (!preempted) {
    CheckWork(scheduler, pool, granted);
  }
  CheckBounds(scheduler);
}

}  // namespace dsa::sim
