// One simulated world, drawn from a seed: every knob is off, tiny or random, so that a thousand
// seeds meet a thousand different mixtures.
#pragma once

#include "common/attention_path.h"
#include "common/check.h"
#include "common/ids.h"
#include "common/prng.h"
#include "scheduler/scheduler_config.h"

#include <array>
#include <cstdint>
#include <vector>

namespace dsa::sim {

// A stream of random numbers; the same for a seed on every machine.
class Random final {
 public:
  explicit Random(std::uint64_t seed) : seed_(seed) {}
  std::uint64_t Bits() { return CounterBits(seed_, counter_++); }
  // Uniform in [minimum, maximum].
  std::int64_t Between(std::int64_t minimum, std::int64_t maximum) {
    return minimum + static_cast<std::int64_t>(Bits() % (maximum - minimum + 1));
  }
  bool Chance(std::int64_t percent) { return Between(0, 99) < percent; }

 private:
  std::uint64_t seed_;
  std::uint64_t counter_ = 0;
};

// What steps take in a world whose steps have a budget of time; its scheduler does not know it.
struct TrueCosts {
  double step_us = 0;
  double sample_us = 0;
  double prompt_logprob_us = 0;
  std::array<double, kAttentionPaths> row_us{};
  std::array<double, kAttentionPaths> key_us{};
  std::int64_t noise_percent = 0;
  // From this step on everything takes longer or shorter by this factor.
  std::int64_t changes_at_step = 0;
  double change = 1;
};

struct SimConfig {
  std::uint64_t seed = 0;
  std::int32_t blocks = 1;
  std::int32_t tokens_per_block = 1;
  std::int32_t hash_bits = 256;
  std::int32_t vocabulary = 8;
  SchedulerConfig scheduler;
  std::vector<TokenId> end_ids;
  TokenId poison{-1};              // a token whose row is faulty; -1: none
  std::int64_t faulty_one_in = 0;  // sampled rows whose logits are faulty; 0: none

  std::vector<std::int64_t> row_buckets;  // of EngineConfig
  std::int64_t data_ranks = 1;            // likewise
  bool runs_ahead = false;                // text is shown while the next step runs

  std::int64_t prompt_max = 8;
  std::int64_t reply_max = 8;
  std::int64_t families = 1;  // beginnings that prompts share
  std::int64_t tenants = 1;
  std::int64_t arrival_percent = 50;
  std::int64_t burst_max = 1;
  std::int64_t cancel_percent = 0;
  std::int64_t abort_percent = 0;
  std::int64_t deadline_percent = 0;
  std::int64_t duplicate_percent = 0;
  std::int64_t stop_percent = 0;
  std::int64_t penalty_percent = 0;
  std::int64_t sibling_percent = 0;
  std::int64_t prompt_logprob_percent = 0;
  std::int64_t only_prompt_percent = 0;  // want no tokens
  std::int64_t in_flight_percent = 0;    // of steps during which clients come and go
  std::int64_t pump_percent = 100;       // of steps after which deltas are delivered
  std::int64_t busy_steps = 200;         // with arrivals; then everything must end
  bool drain = false;                    // ends by draining
  TrueCosts costs;                       // with scheduler.step_time_target_us

  bool timed() const { return scheduler.step_time_target_us > 0; }
};

SimConfig DrawConfig(std::uint64_t seed);

// Ends the simulation of the current seed as failed; prints seed, step and the command that
// replays it.
[[noreturn]] void Fail(std::string_view message);

}  // namespace dsa::sim

// A law of the simulated world.
#define SIM_CHECK(condition, message) \
  do {                                \
    if (!(condition)) [[unlikely]] {  \
      ::dsa::sim::Fail(message);      \
    }                                 \
  } while (false)
