#include "scheduler/scheduler.h"

#include "tests/scheduler/testing.h"

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/format.h>

namespace dsa {
namespace {

using testing::SchedulerRig;
using testing::TokensOf;

TEST_CASE("A long prompt is computed in chunks and its last one samples", "[scheduler]") {
  SchedulerRig rig({.step_tokens_max = 8});
  const Sequence& sequence = rig.Add({.prompt = 20, .max_tokens = 3});
  for (const std::int64_t expected : {8, 8, 4}) {
    const StepPlan& plan = rig.scheduler.Plan(0, {});
    REQUIRE(plan.rows.size() == 1);
    CHECK(plan.rows[0].tokens == expected);
    CHECK(plan.rows[0].first_position == sequence.computed());
    CHECK(plan.rows[0].samples == (expected == 4 ? 1 : 0));
    rig.scheduler.Commit(plan);
  }
  CHECK(sequence.behind() == 0);
}

TEST_CASE("Decoding sequences advance every step beside a long prompt", "[scheduler]") {
  SchedulerRig rig({.step_tokens_max = 8});
  const Sequence& decoding = rig.Add({.prompt = 2, .max_tokens = 10});
  rig.Step();
  const Sequence& prompt = rig.Add({.prompt = 30, .max_tokens = 2, .first_token = 100});
  for (int step = 0; step < 3; ++step) {
    const StepPlan& plan = rig.Step();
    CHECK(TokensOf(plan, decoding) == 1);
    CHECK(TokensOf(plan, prompt) == 7);
    CHECK(plan.tokens == 8);
  }
}

TEST_CASE("A full pool makes the newest arrivals wait, and they run in order", "[scheduler]") {
  SchedulerRig rig({.blocks = 4});
  for (int i = 0; i < 5; ++i) {
    rig.Add({.prompt = 8, .max_tokens = 1, .first_token = 100 * i});
  }
  CHECK(rig.Step().sequences == 1);  // two blocks each, and one of growth for the running one
  while (rig.finished.size() < 5) {
    REQUIRE_FALSE(rig.Step().rows.empty());
  }
  CHECK(std::is_sorted(rig.finished.begin(), rig.finished.end()));
}

TEST_CASE("A sequence that grows takes the blocks of the last in order", "[scheduler]") {
  SchedulerRig rig({.blocks = 5});
  const Sequence& older = rig.Add({.prompt = 4, .max_tokens = 16});
  const Sequence& younger = rig.Add({.prompt = 4, .max_tokens = 12, .first_token = 50});
  while (rig.scheduler.preemptions() == 0) {
    rig.Step();
  }
  CHECK(younger.state() == SequenceState::kWaiting);
  CHECK(younger.computed() == 0);
  CHECK(younger.blocks().blocks() == 0);
  CHECK(younger.preemptions() == 1);
  CHECK(younger.tokens() > younger.prompt_tokens());  // what it generated stays
  CHECK(older.state() == SequenceState::kRunning);
  while (rig.finished.size() < 2) {
    REQUIRE_FALSE(rig.Step().rows.empty());
  }
}

TEST_CASE("With full reservation nothing is preempted", "[scheduler]") {
  SchedulerRig rig({.blocks = 9, .reservation = ReservationMode::kFull});
  for (int i = 0; i < 10; ++i) {
    rig.Add({.prompt = 1 + i, .max_tokens = 12, .first_token = 100 * i});
  }
  while (rig.finished.size() < 10) {
    REQUIRE_FALSE(rig.Step().rows.empty());
  }
  CHECK(rig.scheduler.preemptions() == 0);
}

TEST_CASE("After its last allowed preemption a sequence runs with its full reservation",
          "[scheduler]") {
  const auto limit = GENERATE(0, 1, 2);
  CAPTURE(limit);
  SchedulerRig rig({.blocks = 8, .preemptions_max = limit});
  rig.Add({.prompt = 4, .max_tokens = 20});
  const Sequence& victim = rig.Add({.prompt = 4, .max_tokens = 28, .first_token = 50});
  const std::int64_t id = Value(victim.id());
  std::int32_t preemptions = 0;
  bool reserved = false;
  while (std::find(rig.finished.begin(), rig.finished.end(), id) == rig.finished.end()) {
    preemptions = victim.preemptions();
    reserved = victim.fully_reserved();
    if (reserved) {
      CHECK(preemptions == limit);
      CHECK(victim.blocks().blocks() == 8);
    }
    REQUIRE_FALSE(rig.Step().rows.empty());
    if (rig.scheduler.waiting().empty()) {
      rig.Add({.prompt = 4, .max_tokens = 2, .first_token = 500});
    }
  }
  CHECK(preemptions <= limit);
  CHECK(reserved == (preemptions == limit));
}

TEST_CASE("A shared prefix is not computed again, but for its last token", "[scheduler]") {
  const auto prompt = GENERATE(as<std::int64_t>(), 4, 7, 8, 9);
  CAPTURE(prompt);
  SchedulerRig rig({});
  rig.Add({.prompt = prompt, .max_tokens = 1});
  rig.Step();
  const Sequence& second = rig.Add({.prompt = prompt, .max_tokens = 1});
  const std::int64_t shared = (prompt - 1) / 4 * 4;
  const StepPlan& plan = rig.scheduler.Plan(0, {});
  CHECK(second.cache_hit_tokens() == shared);
  CHECK(plan.tokens == prompt - shared);
  CHECK(plan.rows.back().samples == 1);
}

TEST_CASE("Other salts, and requests for prompt logits, share nothing", "[scheduler]") {
  SchedulerRig rig({});
  rig.Add({.prompt = 9, .max_tokens = 1});
  rig.Step();
  const Sequence& salted = rig.Add({.prompt = 9, .max_tokens = 1, .salt = "x"});
  const Sequence& logits =
      rig.Add({.prompt = 9, .max_tokens = 1, .prompt_logits = PromptLogits::kAll});
  CHECK(rig.scheduler.Plan(0, {}).tokens == 18);
  CHECK(salted.cache_hit_tokens() == 0);
  CHECK(logits.cache_hit_tokens() == 0);
}

TEST_CASE("What a preempted sequence finds again is not counted as a hit", "[scheduler]") {
  SchedulerRig rig({.blocks = 5});
  rig.Add({.prompt = 4, .max_tokens = 13});
  const Sequence& victim = rig.Add({.prompt = 5, .max_tokens = 8, .first_token = 50});
  while (rig.scheduler.preemptions() == 0) {
    rig.Step();
  }
  while (victim.state() == SequenceState::kWaiting) {
    rig.Step();
  }
  CHECK(victim.cache_hit_tokens() == 0);
}

// Which path each computed position took, in the order of computing; one string per sequence.
std::map<std::int64_t, std::string> PathsUntilAllEnd(SchedulerRig& rig, std::size_t sequences) {
  std::map<std::int64_t, std::string> paths;
  while (rig.finished.size() < sequences) {
    const StepPlan plan = rig.Step();
    CHECK(std::is_sorted(plan.rows.begin(), plan.rows.end(),
                         [](const auto& a, const auto& b) { return a.path < b.path; }));
    for (const StepPlan::Row& row : plan.rows) {
      std::string& own = paths[Value(row.sequence)];
      const auto end = static_cast<std::size_t>(row.first_position + row.tokens);
      own.resize(std::max(own.size(), end), '?');
      for (std::size_t p = static_cast<std::size_t>(row.first_position); p < end; ++p) {
        const char path = "dmMs"[static_cast<int>(row.path)];
        CHECK((own[p] == '?' || own[p] == path));  // computed again: the same path
        own[p] = path;
      }
    }
  }
  return paths;
}

TEST_CASE("A row's path follows from its position and its prompt", "[scheduler]") {
  const auto budget = GENERATE(as<std::int64_t>(), 1, 3, 5, 8, 32);
  const auto masked = GENERATE(as<std::int64_t>(), 0, 6, 16, 20, 40);
  CAPTURE(budget, masked);
  SchedulerRig rig({.step_tokens_max = budget,
                    .sequences_max = 1,
                    .attention = AttentionMode::kSparse,
                    .index_topk = 16,
                    .masked_mha_until = masked});
  rig.Add({.prompt = 30, .max_tokens = 4});
  std::string expected;
  for (std::int64_t p = 0; p < 33; ++p) {
    const bool is_masked = p < masked && p < 30;
    expected += p < 16 ? (is_masked ? 'm' : 'd') : (is_masked ? 'M' : 's');
  }
  CHECK(PathsUntilAllEnd(rig, 1)[0] == expected);
}

TEST_CASE("A masked path without selection selects nothing", "[scheduler]") {
  SchedulerRig rig({.index_topk = 4, .masked_mha_until = 10});
  rig.Add({.prompt = 12, .max_tokens = 1});
  CHECK(PathsUntilAllEnd(rig, 1)[0] == "mmmmmmmmmmdd");
}

TEST_CASE("Generated positions are never masked, nor when they are computed again", "[scheduler]") {
  const auto budget = GENERATE(as<std::int64_t>(), 3, 32);
  SchedulerRig rig({.blocks = 5,
                    .step_tokens_max = budget,
                    .sequences_max = 2,
                    .attention = AttentionMode::kSparse,
                    .index_topk = 8,
                    .masked_mha_until = 40});
  rig.Add({.prompt = 5, .max_tokens = 12, .prompt_logits = PromptLogits::kAll});
  rig.Add({.prompt = 6, .max_tokens = 12, .first_token = 50, .prompt_logits = PromptLogits::kAll});
  auto paths = PathsUntilAllEnd(rig, 2);
  CHECK(rig.scheduler.preemptions() > 0);
  CHECK(paths[0] == "mmmmmdddssssssss");
  CHECK(paths[1] == "mmmmmmddsssssssss");
}

TEST_CASE("A short rest of a prompt behind a prefix hit is never masked", "[scheduler]") {
  SchedulerRig rig({.masked_mha_until = 40, .masked_rows_min = 3});
  rig.Add({.prompt = 8, .max_tokens = 1});
  CHECK(PathsUntilAllEnd(rig, 1)[0] == "mmmmmmmm");
  const std::int64_t short_rest = Value(rig.Add({.prompt = 10, .max_tokens = 1}).id());
  const std::int64_t long_rest = Value(rig.Add({.prompt = 11, .max_tokens = 1}).id());
  auto paths = PathsUntilAllEnd(rig, 3);
  CHECK(paths[short_rest] == "????????dd");
  CHECK(paths[long_rest] == "????????mmm");
}

TEST_CASE("Without selection every row is dense", "[scheduler]") {
  SchedulerRig rig({});
  rig.Add({.prompt = 30, .max_tokens = 1});
  const StepPlan& plan = rig.Step();
  REQUIRE(plan.rows.size() == 1);
  CHECK(plan.rows[0].path == AttentionPath::kDense);
}

TEST_CASE("What can never fit is refused with need and have", "[scheduler]") {
  SchedulerRig rig({.blocks = 8, .context_tokens_max = 40});
  const Scheduler& scheduler = rig.scheduler;
  CHECK(scheduler.CheckFits(30, 3).ok());  // 32 keys in 8 blocks of 4: the last token has none
  const Status blocks = scheduler.CheckFits(30, 4);
  REQUIRE_FALSE(blocks.ok());
  CHECK(blocks.error().code == ErrorCode::kInvalidArgument);
  CHECK(blocks.error().message ==
        "prompt has 30 tokens and max_tokens is 4: they need 9 cache blocks of 4 tokens, the "
        "server has 8");
  CHECK(scheduler.CheckFits(40, 1).error().message == "prompt has 40 tokens, limit 39");
  CHECK(scheduler.CheckFits(39, 2).error().message ==
        "prompt has 39 tokens and max_tokens is 2, the context has 40");
  CHECK_FALSE(scheduler.CheckFits(1, std::numeric_limits<std::int64_t>::max()).ok());
}

TEST_CASE("Removing a sequence frees its blocks at once", "[scheduler]") {
  SchedulerRig rig({});
  const Sequence& sequence = rig.Add({.prompt = 9, .max_tokens = 5});
  rig.Step();
  CHECK(rig.pool.referenced_blocks() == 3);
  SECTION("and keeps what others may share") {
    rig.scheduler.Remove(sequence.slot(), CachedBlocks::kKeep);
    CHECK(rig.pool.cached_blocks() == 2);
  }
  SECTION("or nothing, where its keys are faulty") {
    rig.scheduler.Remove(sequence.slot(), CachedBlocks::kForget);
    CHECK(rig.pool.cached_blocks() == 0);
  }
  CHECK(rig.pool.referenced_blocks() == 0);
  CHECK(rig.scheduler.Plan(0, {}).rows.empty());
}

TEST_CASE("A plan's rows of a sequence removed meanwhile are not committed", "[scheduler]") {
  SchedulerRig rig({});
  const Sequence& gone = rig.Add({.prompt = 8, .max_tokens = 5});
  const StepPlan& plan = rig.scheduler.Plan(0, {});
  const std::int32_t slot = gone.slot();
  rig.scheduler.Remove(slot, CachedBlocks::kForget);
  const Sequence& next = rig.Add({.prompt = 8, .max_tokens = 5});
  REQUIRE(next.slot() == slot);
  rig.scheduler.Commit(plan);
  CHECK(next.computed() == 0);
  CHECK(rig.cache.entries() == 0);
}

TEST_CASE("A plan names every block that it writes, and none is given away until it is committed",
          "[scheduler]") {
  SchedulerRig rig({.blocks = 5, .step_tokens_max = 10});
  CHECK(rig.scheduler.in_flight() == nullptr);
  const Sequence& first = rig.Add({.prompt = 9, .max_tokens = 3});
  const StepPlan& plan = rig.scheduler.Plan(0, {});
  CHECK(rig.scheduler.in_flight() == &plan);
  REQUIRE(plan.writes.size() == 3);
  for (std::size_t i = 0; i < plan.writes.size(); ++i) {
    CHECK(plan.writes[i].block == first.blocks().block(static_cast<std::int64_t>(i)));
    CHECK(plan.writes[i].generation == 1);
  }
  rig.scheduler.Remove(first.slot(), CachedBlocks::kKeep);
  rig.Add({.prompt = 17, .max_tokens = 1});
  for (const StepPlan::Write& write : plan.writes) {
    CHECK(rig.pool.generation(write.block) == write.generation);
  }
  rig.scheduler.Commit(plan);
  CHECK(rig.scheduler.in_flight() == nullptr);
  // The last positions of a step that begins within a block write that block again.
  const StepPlan& next = rig.Step();
  CHECK(next.tokens == 10);
  CHECK(next.writes.size() == 3);
  CHECK(rig.Step().writes.size() == 3);  // positions 10 to 16 of blocks of 4
}

TEST_CASE("A configuration out of range is refused by name", "[scheduler]") {
  SchedulerConfig config{.context_tokens_max = 100, .index_topk = 16};
  CHECK(Validate(config).ok());
  config.step_tokens_max = config.sequences_max - 1;
  CHECK(Validate(config).error().message ==
        "scheduler.step_tokens_max is 255, it must be at least sequences_max, 256");
  config = {.context_tokens_max = 100, .index_topk = 0};
  config.attention = AttentionMode::kDense;
  CHECK(Validate(config).ok());
}

TEST_CASE("Every number of a configuration has its borders", "[scheduler]") {
  struct Setting {
    std::string name;
    std::int64_t SchedulerConfig::*field;
    std::int64_t minimum;
    std::int64_t maximum;
  };
  constexpr std::int64_t kCountMax = 1 << 20;
  constexpr std::int64_t kPositionsMax = 2147483647;
  for (const Setting& setting : std::vector<Setting>{
           {"sequences_max", &SchedulerConfig::sequences_max, 1, kCountMax},
           {"step_tokens_max", &SchedulerConfig::step_tokens_max, 1, kCountMax},
           {"step_time_target_us", &SchedulerConfig::step_time_target_us, 0, 60'000'000},
           {"waiting_max", &SchedulerConfig::waiting_max, 1, kCountMax},
           {"context_tokens_max", &SchedulerConfig::context_tokens_max, 2, kPositionsMax},
           {"prompt_logprob_rows_max", &SchedulerConfig::prompt_logprob_rows_max, 0, kCountMax},
           {"index_topk", &SchedulerConfig::index_topk, 1, kPositionsMax},
           {"masked_rows_min", &SchedulerConfig::masked_rows_min, 1, kPositionsMax},
           {"masked_mha_until", &SchedulerConfig::masked_mha_until, 0, kPositionsMax}}) {
    SchedulerConfig config{.context_tokens_max = 100, .index_topk = 16};
    config.step_tokens_max = kCountMax;
    config.sequences_max = 1;
    CAPTURE(setting.name);
    for (const std::int64_t taken : {setting.minimum, setting.maximum}) {
      config.*setting.field = taken;
      CHECK(Validate(config).ok());
    }
    for (const std::int64_t refused : {setting.minimum - 1, setting.maximum + 1}) {
      config.*setting.field = refused;
      CHECK(Validate(config).error().message ==
            fmt::format("scheduler.{} is {}, allowed is {} to {}", setting.name, refused,
                        setting.minimum, setting.maximum));
    }
  }
  SchedulerConfig config{.context_tokens_max = 100, .preemptions_max = -1, .index_topk = 16};
  CHECK(Validate(config).error().message ==
        "scheduler.preemptions_max is -1, allowed is 0 to 1048576");
  config.preemptions_max = 0;
  CHECK(Validate(config).ok());
}

}  // namespace
}  // namespace dsa
