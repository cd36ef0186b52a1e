// A scheduler with its cache, and a stand-in for the model that appends a fixed token: shared by
// the scheduler's tests.
#pragma once

#include "cache/block_pool.h"
#include "cache/prefix_cache.h"
#include "cache/prefix_hash.h"
#include "scheduler/scheduler.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace dsa::testing {

struct RigConfig {
  std::int32_t blocks = 16;
  std::int32_t tokens_per_block = 4;
  std::int64_t step_tokens_max = 32;
  std::int64_t step_time_target_us = 0;
  std::int64_t sequences_max = 8;
  std::int64_t context_tokens_max = 64;
  SchedulingPolicyKind policy = SchedulingPolicyKind::kFirstCome;
  ReservationMode reservation = ReservationMode::kPrompt;
  std::int32_t preemptions_max = 4;
  std::int64_t prompt_logprob_rows_max = 0;
  AttentionMode attention = AttentionMode::kDense;
  std::int64_t index_topk = 0;
  std::int64_t masked_mha_until = 0;
  std::int64_t masked_rows_min = 1;
};

struct RigRequest {
  std::int64_t prompt = 1;  // tokens
  std::int64_t max_tokens = 1;
  std::int32_t priority = 0;
  std::int32_t first_token = 0;  // the prompt counts up from it
  std::string salt{};
  PromptLogits prompt_logits = PromptLogits::kNone;
  std::optional<std::int32_t> prompt_logprobs{};
  std::optional<RequestId> siblings{};
};

class SchedulerRig final {
 public:
  explicit SchedulerRig(const RigConfig& config)
      : pool(config.blocks, config.tokens_per_block),
        cache(pool),
        hasher({.identity = "rig", .tokens_per_block = config.tokens_per_block}),
        scheduler({.step_tokens_max = config.step_tokens_max,
                   .step_time_target_us = config.step_time_target_us,
                   .sequences_max = config.sequences_max,
                   .waiting_max = 64,
                   .context_tokens_max = config.context_tokens_max,
                   .policy = config.policy,
                   .reservation = config.reservation,
                   .preemptions_max = config.preemptions_max,
                   .prompt_logprob_rows_max = config.prompt_logprob_rows_max,
                   .attention = config.attention,
                   .index_topk = config.index_topk,
                   .masked_mha_until = config.masked_mha_until,
                   .masked_rows_min = config.masked_rows_min},
                  {.pool = pool, .cache = cache, .hasher = hasher}) {}

  ~SchedulerRig() {
    for (const auto& sequence : scheduler.sequences()) {
      if (sequence != nullptr) {
        scheduler.Remove(sequence->slot(), CachedBlocks::kKeep);
      }
    }
  }

  const Sequence& Add(const RigRequest& wanted) {
    Request request;
    for (std::int64_t i = 0; i < wanted.prompt; ++i) {
      request.prompt.push_back(TokenId{wanted.first_token + static_cast<std::int32_t>(i)});
    }
    request.stop.max_tokens = wanted.max_tokens;
    request.priority = wanted.priority;
    request.cache_salt = wanted.salt;
    request.prompt_logits = wanted.prompt_logits;
    request.prompt_logprobs = wanted.prompt_logprobs;
    request.siblings = wanted.siblings;
    const auto slot = scheduler.Add(std::make_unique<Sequence>(std::move(request), hasher));
    return *scheduler.sequences()[slot];
  }

  // Plans and commits one step; sampled sequences get a token and leave after their last.
  const StepPlan& Step() {
    const StepPlan& plan = scheduler.Plan(now_us++, costs);
    scheduler.CheckInvariants();
    scheduler.Commit(plan);
    for (const StepPlan::Row& row : plan.rows) {
      if (row.samples > 0) {
        const Sequence& sequence = *scheduler.sequences()[row.slot];
        scheduler.Append(row.slot, TokenId{1000});
        if (sequence.generated() == sequence.request().stop.max_tokens) {
          finished.push_back(Value(sequence.id()));
          scheduler.Remove(row.slot, CachedBlocks::kKeep);
        }
      }
    }
    scheduler.CheckInvariants();
    return plan;
  }

  BlockPool pool;
  PrefixCache cache;
  PrefixHasher hasher;
  Scheduler scheduler;
  StepCostModel costs;
  MonotonicUs now_us = 0;
  std::vector<std::int64_t> finished;  // sequence ids, in order
};

// Of a sequence in a plan.
inline std::int64_t TokensOf(const StepPlan& plan, const Sequence& sequence) {
  std::int64_t tokens = 0;
  for (const StepPlan::Row& row : plan.rows) {
    tokens += row.sequence == sequence.id() ? row.tokens : 0;
  }
  return tokens;
}

}  // namespace dsa::testing
