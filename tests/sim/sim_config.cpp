#include "tests/sim/sim_config.h"

#include "server/engine/batch_builder.h"

#include <algorithm>

namespace dsa::sim {

namespace {

// Longer prompts, in chunks whose size follows from what steps take.
void DrawTimes(Random& random, SimConfig& config) {
  const auto draw_us = [&](std::int64_t maximum) {
    return static_cast<double>(random.Between(0, maximum * 10)) / 10;
  };
  config.scheduler.step_time_target_us = random.Between(2000, 40000);
  config.scheduler.step_tokens_max = config.scheduler.sequences_max + random.Between(0, 200);
  const std::int64_t context = config.scheduler.context_tokens_max;
  config.prompt_max = random.Between(1, std::min<std::int64_t>(context, 300));
  TrueCosts& costs = config.costs;
  costs.step_us = 500 + draw_us(3000);
  costs.sample_us = draw_us(200);
  for (int path = 0; path < kAttentionPaths; ++path) {
    costs.row_us[path] = 20 + draw_us(500);
    costs.key_us[path] = random.Chance(30) ? 0 : draw_us(IsMasked(AttentionPath(path)) ? 1 : 10);
  }
  costs.noise_percent = random.Between(0, 20);
  costs.changes_at_step = random.Between(20, 400);
  costs.change = random.Chance(50) ? 1 : static_cast<double>(random.Between(1, 40)) / 10;
}

}  // namespace

SimConfig DrawConfig(std::uint64_t seed) {
  Random random(SplitMix64(seed));
  SimConfig config;
  config.seed = seed;
  config.blocks = static_cast<std::int32_t>(random.Between(1, random.Chance(50) ? 12 : 64));
  config.tokens_per_block = static_cast<std::int32_t>(random.Between(1, 8));
  config.hash_bits = random.Chance(50) ? 256 : static_cast<std::int32_t>(random.Between(0, 4));
  config.vocabulary = static_cast<std::int32_t>(random.Between(8, 40));
  const std::int64_t keys = std::int64_t{config.blocks} * config.tokens_per_block;
  config.scheduler = {
      .sequences_max = random.Between(1, 16),
      .waiting_max = random.Between(1, 24),
      .context_tokens_max = std::max<std::int64_t>(2, random.Between(keys / 2, keys + 4)),
      .policy =
          random.Chance(60) ? SchedulingPolicyKind::kFirstCome : SchedulingPolicyKind::kPriority,
      .reservation = random.Chance(75) ? ReservationMode::kPrompt : ReservationMode::kFull,
      .preemptions_max = random.Chance(70) ? 4 : static_cast<std::int32_t>(random.Between(0, 2)),
      .attention = random.Chance(75) ? AttentionMode::kSparse : AttentionMode::kDense,
      .index_topk = random.Between(1, 40),
      .masked_mha_until = random.Chance(50) ? 0 : random.Between(1, 40)};
  config.scheduler.step_tokens_max = config.scheduler.sequences_max + random.Between(0, 48);
  for (std::int64_t i = random.Between(0, 2); i > 0; --i) {
    config.end_ids.push_back(TokenId{static_cast<std::int32_t>(i)});
  }
  if (random.Chance(25)) {
    config.poison = TokenId{3};
  }
  config.faulty_one_in = random.Chance(25) ? random.Between(20, 200) : 0;
  const std::int64_t context = config.scheduler.context_tokens_max;
  config.prompt_max = random.Between(1, std::min<std::int64_t>(context, 60));
  config.reply_max = random.Between(1, std::min<std::int64_t>(context, 40));
  config.families = random.Between(1, 4);
  config.tenants = random.Chance(50) ? 1 : random.Between(2, 4);
  config.arrival_percent = random.Between(5, 100);
  config.burst_max = random.Chance(70) ? 2 : random.Between(2, 12);
  config.cancel_percent = random.Chance(50) ? 0 : random.Between(1, 30);
  config.abort_percent = random.Chance(70) ? 0 : random.Between(1, 10);
  config.deadline_percent = random.Chance(50) ? 0 : random.Between(1, 60);
  config.duplicate_percent = random.Chance(70) ? 0 : random.Between(1, 30);
  config.stop_percent = random.Chance(50) ? 0 : random.Between(10, 90);
  config.pump_percent = random.Chance(60) ? 100 : random.Between(5, 90);
  config.in_flight_percent = random.Chance(40) ? 0 : random.Between(5, 60);
  config.busy_steps = random.Between(50, 400);
  config.drain = random.Chance(40);
  config.scheduler.masked_rows_min = random.Between(1, 20);
  config.runs_ahead = random.Chance(50);
  if (random.Chance(50)) {
    config.row_buckets = RowBuckets(config.scheduler.sequences_max, config.tokens_per_block);
  }
  if (random.Chance(40)) {
    DrawTimes(random, config);
  }
  config.penalty_percent = random.Chance(40) ? 0 : random.Between(10, 90);
  if (random.Chance(40)) {
    config.data_ranks = random.Between(2, 4);
  }
  config.sibling_percent = random.Chance(40) ? 0 : random.Between(5, 50);
  config.scheduler.prompt_logprob_rows_max = random.Between(1, 20);
  config.prompt_logprob_percent = random.Chance(50) ? 0 : random.Between(2, 40);
  config.only_prompt_percent = random.Chance(50) ? 0 : random.Between(2, 30);
  if (config.timed()) {
    config.costs.prompt_logprob_us = static_cast<double>(random.Between(0, 2000)) / 10;
    config.scheduler.prompt_logprob_rows_max = random.Between(1, random.Chance(50) ? 20 : 100);
  }
  return config;
}

}  // namespace dsa::sim
