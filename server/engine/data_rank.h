// What a data rank has of its own: sequences, caches, and the step that it runs beside those of the
// others.  Engine thread, but for the load.
#pragma once

#include "cache/block_pool.h"
#include "cache/prefix_cache.h"
#include "cache/prefix_hash.h"
#include "scheduler/scheduler.h"
#include "server/engine/batch_builder.h"
#include "server/engine/engine_config.h"
#include "server/engine/executor.h"
#include "server/engine/live_request.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace dsa {

// RankLoad as the engine thread leaves it for others: single numbers, each consistent by itself.
struct RankCounters {
  std::atomic<std::int64_t> waiting{0};
  std::atomic<std::int64_t> running{0};
  std::atomic<std::int32_t> blocks_referenced{0};
  std::atomic<std::int32_t> blocks_cached{0};
  std::atomic<std::int64_t> rows{0};
  std::atomic<std::int64_t> padding_rows{0};
  std::atomic<std::int64_t> last_step_us{0};
  std::atomic<std::int64_t> expert_pairs{0};
  std::atomic<double> expert_pairs_max_over_mean{0.0};
};

struct DataRank {
  DataRank(const EngineConfig& config, StepExecutor& of_rank, const PrefixHasher& hasher)
      : executor(of_rank),
        pool(config.blocks, config.tokens_per_block),
        cache(pool),
        scheduler(config.scheduler, {.pool = pool, .cache = cache, .hasher = hasher}),
        builder({.step_tokens_max = config.scheduler.step_tokens_max,
                 .sequences_max = config.scheduler.sequences_max,
                 .slots_max = scheduler.slots(),
                 .context_tokens_max = config.scheduler.context_tokens_max,
                 .tokens_per_block = config.tokens_per_block,
                 .end_ids = config.end_ids,
                 .given_rows_max = config.scheduler.prompt_logprob_rows_max,
                 .row_adjustments =
                     RowAdjustments(config.vocabulary, config.scheduler.context_tokens_max,
                                    static_cast<std::int64_t>(config.end_ids.size())),
                 .row_buckets = config.row_buckets,
                 .padding_block = config.blocks}) {
    live.resize(scheduler.slots());
  }

  StepExecutor& executor;
  BlockPool pool;
  PrefixCache cache;
  Scheduler scheduler;
  BatchBuilder builder;
  std::vector<std::unique_ptr<LiveRequest>> live;  // by the scheduler's slot

  // The step at hand; its plan may have no rows.
  const StepPlan* plan = nullptr;
  const ForwardBatch* batch = nullptr;
  const StepResult* result = nullptr;
  StepResult judged_result{};  // of the last step, where the executor runs ahead

  RankCounters load;  // any thread
};

}  // namespace dsa
