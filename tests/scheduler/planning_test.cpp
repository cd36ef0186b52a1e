// Plans whose steps have a budget of time.  The costs are taught before: a step takes 1 ms and 0.1
// ms for each row, whatever it sees.
#include "tests/scheduler/testing.h"

#include <algorithm>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::RigConfig;
using testing::SchedulerRig;
using testing::TokensOf;

constexpr std::int64_t kStepUs = 1000;
constexpr std::int64_t kRowUs = 100;

std::int64_t TakesUs(const StepPlan& plan) {
  return kStepUs + kRowUs * plan.tokens;
}

// Room for 70 rows in a step of the target.
RigConfig TimedConfig() {
  return {.blocks = 4000,
          .step_tokens_max = 1000,
          .step_time_target_us = 8000,
          .sequences_max = 64,
          .context_tokens_max = 8000};
}

void Teach(StepCostModel& costs) {
  for (std::int64_t step = 0; step < 400; ++step) {
    StepWork work;
    const std::int64_t rows = 1 + (step * 37) % 400;
    work.Add(AttentionPath::kDense, (step * 311) % 5000, rows, step % 3);
    costs.Measure(work, kStepUs + kRowUs * rows);
  }
}

TEST_CASE("A prompt gets what replies leave of the target, and alone four targets", "[planning]") {
  SchedulerRig rig(TimedConfig());
  Teach(rig.costs);
  const Sequence& prompt = rig.Add({.prompt = 3000, .max_tokens = 1});
  CHECK(TakesUs(rig.Step()) == Approx(4 * 8000).epsilon(0.1));
  const Sequence& reply = rig.Add({.prompt = 1, .max_tokens = 50, .first_token = 5000});
  rig.Step();
  REQUIRE(reply.behind() == 1);
  for (int step = 0; step < 5; ++step) {
    const StepPlan& plan = rig.Step();
    CHECK(TokensOf(plan, reply) == 1);
    CHECK(TokensOf(plan, prompt) == plan.tokens - 1);
    CHECK(TakesUs(plan) == Approx(8000).epsilon(0.1));
  }
}

TEST_CASE("A prompt gets 16 tokens however long the replies take", "[planning]") {
  RigConfig config = TimedConfig();
  config.step_time_target_us = 2000;
  SchedulerRig rig(config);
  Teach(rig.costs);
  for (int i = 0; i < 40; ++i) {
    rig.Add({.prompt = 1, .max_tokens = 500, .first_token = 5000 + 10 * i});
  }
  while (rig.scheduler.running().size() < 40) {
    rig.Step();
  }
  const Sequence& prompt = rig.Add({.prompt = 100, .max_tokens = 1});
  for (const std::int64_t expected : {16, 16, 16}) {
    CHECK(TokensOf(rig.Step(), prompt) == expected);
  }
}

TEST_CASE("A prompt short of logits leaves the rest of a step to others", "[planning]") {
  const bool timed = GENERATE(false, true);
  CAPTURE(timed);
  RigConfig config = TimedConfig();
  config.step_tokens_max = 100;
  config.step_time_target_us = timed ? config.step_time_target_us : 0;
  config.prompt_logprob_rows_max = 16;
  SchedulerRig rig(config);
  Teach(rig.costs);
  const Sequence& scored = rig.Add({.prompt = 50, .max_tokens = 0, .prompt_logprobs = 0});
  const Sequence& also_scored = rig.Add({.prompt = 10, .first_token = 200, .prompt_logprobs = 0});
  const Sequence& plain = rig.Add({.prompt = 500, .first_token = 300});
  for (int step = 0; step < 3; ++step) {
    const StepPlan& plan = rig.Step();
    CHECK(TokensOf(plan, scored) == 16);
    CHECK(TokensOf(plan, also_scored) == 0);
    CHECK(TokensOf(plan, plain) == 84);
    CHECK(plan.work.prompt_logprobs == 16);
    CHECK(also_scored.state() == SequenceState::kWaiting);
  }
  // One more logit and the token that has none; the other gets what is left, in order.
  const StepPlan& plan = rig.Step();
  CHECK(TokensOf(plan, scored) == 2);
  CHECK(plan.work.samples == 1);  // of the other: the first wants no token
  CHECK(plan.work.prompt_logprobs == 1 + 9);
  CHECK(TokensOf(plan, plain) == 100 - 2 - 10);
}

TEST_CASE("Siblings of a prompt with log-probabilities wait for them, and nobody for the siblings",
          "[planning]") {
  RigConfig config = TimedConfig();
  config.step_time_target_us = 0;
  config.step_tokens_max = 100;
  config.prompt_logprob_rows_max = 16;
  SchedulerRig rig(config);
  const RequestId family{7};
  rig.Add({.prompt = 40, .max_tokens = 5, .prompt_logprobs = 0, .siblings = family});
  const Sequence& second = rig.Add({.prompt = 40, .max_tokens = 5, .siblings = family});
  const Sequence& other = rig.Add({.prompt = 300, .max_tokens = 5, .first_token = 500});
  for (const std::int64_t expected : {16, 16, 8}) {
    CHECK(second.state() == SequenceState::kWaiting);
    CHECK(TokensOf(rig.Step(), other) == 100 - expected);
  }
  CHECK(TokensOf(rig.Step(), second) == 4);  // what is no full block of 4, all but the last one
}

TEST_CASE("What was never measured starts with 16 rows and doubles", "[planning]") {
  SchedulerRig rig(TimedConfig());
  rig.Add({.prompt = 3000, .max_tokens = 1});
  for (const std::int64_t expected : {16, 32, 64, 128}) {
    const StepPlan& plan = rig.Step();
    CHECK(plan.tokens == expected);
    rig.costs.Measure(plan.work, kStepUs + plan.tokens);
  }
}

TEST_CASE("Short prompts share an eighth of the time of a long one before them", "[planning]") {
  SchedulerRig rig(TimedConfig());
  Teach(rig.costs);
  const Sequence& older = rig.Add({.prompt = 7000, .max_tokens = 1});
  rig.Step();
  std::int64_t older_tokens = 0;
  std::int64_t newcomer_tokens = 0;
  for (int step = 0; step < 12; ++step) {
    for (int i = 0; i < 3; ++i) {
      rig.Add({.prompt = 30, .max_tokens = 1, .first_token = 10'000 + 100 * (3 * step + i)});
    }
    const StepPlan& plan = rig.Step();
    older_tokens += TokensOf(plan, older);
    newcomer_tokens += plan.tokens - TokensOf(plan, older);
  }
  REQUIRE(older.behind() > 0);
  const std::int64_t all = older_tokens + newcomer_tokens;
  // An eighth, half a target saved up, a token of each step too much.
  CHECK(newcomer_tokens <= all / 8 + 40 + 12);
  CHECK(newcomer_tokens >= all / 8 - 12);
  CHECK(rig.finished.size() >= 10);
}

TEST_CASE("Newcomers with much time saved leave the step's tokens to the long prompt",
          "[planning]") {
  RigConfig config = TimedConfig();
  config.step_tokens_max = 40;  // a step is short of tokens long before it is of time
  config.sequences_max = 8;
  SchedulerRig rig(config);
  Teach(rig.costs);
  const Sequence& older = rig.Add({.prompt = 3000});
  for (int step = 0; step < 20; ++step) {
    CHECK(TokensOf(rig.Step(), older) == 40);
  }
  const Sequence& newcomer = rig.Add({.prompt = 200, .first_token = 5000});
  const StepPlan& plan = rig.Step();
  CHECK(TokensOf(plan, newcomer) == 40 - 16);
  CHECK(TokensOf(plan, older) == 16);
  CHECK(plan.tokens == 40);
}

TEST_CASE("The shortest newcomer comes first, and none that is longer than the one before it",
          "[planning]") {
  SchedulerRig rig(TimedConfig());
  Teach(rig.costs);
  const std::int64_t older = Value(rig.Add({.prompt = 2000, .max_tokens = 1}).id());
  rig.Step();
  const Sequence& longer = rig.Add({.prompt = 2500, .max_tokens = 1, .first_token = 10'000});
  const Sequence& medium = rig.Add({.prompt = 900, .max_tokens = 1, .first_token = 20'000});
  const Sequence& shorter = rig.Add({.prompt = 10, .max_tokens = 9, .first_token = 30'000});
  const StepPlan& plan = rig.Step();
  CHECK(TokensOf(plan, shorter) == 10);
  CHECK(TokensOf(plan, medium) > 0);
  CHECK(TokensOf(plan, longer) == 0);
  CHECK(shorter.passed());
  CHECK(medium.passed());
  // Once the first is done, the one that was passed goes on before those that passed it.
  while (std::count(rig.finished.begin(), rig.finished.end(), older) == 0) {
    rig.Step();
  }
  CHECK(longer.state() == SequenceState::kRunning);
  CHECK(medium.behind() > 0);
  const std::int64_t medium_before = medium.computed();
  const StepPlan& next = rig.Step();
  CHECK(TokensOf(next, longer) > 4 * TokensOf(next, medium));
  CHECK(medium.computed() >= medium_before);
}

// Costs like those of the small model on two processors: eight replies take a tenth of the target.
struct LongPromptBesideReplies {
  double prompt_us = 0;   // of model time, from the prompt's first step to its last
  double longest_us = 0;  // step
};

LongPromptBesideReplies RunLongPrompt(std::int64_t step_time_target_us) {
  SchedulerRig rig({.blocks = 6000,
                    .step_tokens_max = 2048,
                    .step_time_target_us = step_time_target_us,
                    .sequences_max = 64,
                    .context_tokens_max = 20'000});
  const auto take = [&] {
    const StepPlan& plan = rig.Step();
    double us = 2000 + 500.0 * static_cast<double>(plan.work.samples);
    for (std::size_t path = 0; path < kAttentionPaths; ++path) {
      us += 2000.0 * static_cast<double>(plan.work.rows[path]) +
            0.3 * static_cast<double>(plan.work.keys[path]);
    }
    rig.costs.Measure(plan.work, static_cast<std::int64_t>(us));
    return us;
  };
  for (int i = 0; i < 8; ++i) {
    rig.Add({.prompt = 64, .max_tokens = 5000, .first_token = 100'000 + 100 * i});
  }
  for (int step = 0; step < 200; ++step) {
    take();
  }
  const Sequence& prompt = rig.Add({.prompt = 16'384, .max_tokens = 2});
  LongPromptBesideReplies result;
  while (prompt.generated() == 0) {
    const double us = take();
    result.prompt_us += us;
    result.longest_us = std::max(result.longest_us, us);
  }
  return result;
}

TEST_CASE("A long prompt pays for the replies beside it and for little else", "[planning]") {
  const LongPromptBesideReplies bound = RunLongPrompt(250'000);
  const LongPromptBesideReplies unbound = RunLongPrompt(0);
  CHECK(unbound.longest_us > 4'000'000);
  CHECK(bound.longest_us <= 500'000);
  CHECK(bound.prompt_us > unbound.prompt_us);
  CHECK(bound.prompt_us <= 1.15 * unbound.prompt_us);
}

TEST_CASE("Nobody passes where the first that waits would lose its place or its blocks",
          "[planning]") {
  RigConfig config = TimedConfig();
  const bool places = GENERATE(true, false);
  if (places) {
    config.sequences_max = 2;
  } else {
    config.blocks = 1800 / 4 + 1 + 900 / 4 + 1;
  }
  SchedulerRig rig(config);
  Teach(rig.costs);
  rig.Add({.prompt = 1800, .max_tokens = 1});
  rig.Step();
  const Sequence& first = rig.Add({.prompt = 900, .max_tokens = 1, .first_token = 10'000});
  const Sequence& shorter = rig.Add({.prompt = 10, .max_tokens = 1, .first_token = 30'000});
  CAPTURE(places);
  rig.Step();
  CHECK(shorter.state() == SequenceState::kWaiting);
  CHECK(first.state() == SequenceState::kWaiting);
}

}  // namespace
}  // namespace dsa
