// Runs requests through the real scheduler, block pool, prefix cache, batch builder and executor,
// and keeps every row of logits with the position it belongs to.
#pragma once

#include "cache/block_pool.h"
#include "cache/prefix_cache.h"
#include "cache/prefix_hash.h"
#include "scheduler/scheduler.h"
#include "server/engine/batch_builder.h"
#include "server/engine/model_executor.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace dsa::testing {

struct RunOptions {
  KvFormat kv_format = KvFormat::kF32;
  AttentionMode attention = AttentionMode::kSparse;
  std::int64_t step_tokens_max = 256;
  // Of a step, by costs that the runner makes up: a microsecond per row and one per 16 keys.  0:
  // steps are bounded by their tokens alone.
  std::int64_t step_time_target_us = 0;
  std::int64_t sequences_max = 8;
  std::int64_t context_max = 512;
  std::int64_t masked_until = 0;
  std::int32_t blocks = 64;
  std::int64_t score_bytes_max = 1 << 16;
  std::vector<std::int64_t> row_buckets{};  // the last one sequences_max; empty: none
  std::int64_t data_ranks = 1;              // of which this is one
  bool record_at_start = false;             // all of their shapes
  bool logits = true;                       // copy them to the host
};

struct SequenceOutput {
  std::vector<std::int32_t> ids;                             // generated
  std::map<std::int64_t, std::vector<float>> logits;         // by position; computed positions only
  std::map<std::int64_t, std::vector<std::int32_t>> routes;  // likewise, where they are asked for
  std::int64_t cache_hit_tokens = 0;
  std::int32_t preemptions = 0;
  bool faulty = false;  // a row or sample fault was reported
};

// Whether each has the other's ids and logits, of the same positions; never without logits.
bool SameBits(const std::vector<SequenceOutput>& a, const std::vector<SequenceOutput>& b);

struct SequenceRequest {
  std::vector<std::int32_t> prompt;
  std::int64_t max_tokens = 1;
  // kAll also keeps the request from taking prompt positions out of the prefix cache.
  PromptLogits prompt_logits = PromptLogits::kAll;
  std::optional<SamplingParams> sampling{};  // absent: greedy
};

class SequenceRunner final {
 public:
  SequenceRunner(Backend& backend, const LoadedModel& model, const RunOptions& options);
  // On an executor that `make` returns; it serves arena() where it is a ModelExecutor.
  using MakeExecutor =
      std::function<std::unique_ptr<StepExecutor>(const ModelExecutorConfig& config)>;
  SequenceRunner(const MakeExecutor& make, const ModelConfig& model, const RunOptions& options);

  // Greedy where they say nothing else, end ids ignored, all submitted at once.  Keys stay cached
  // for the next call.
  std::vector<SequenceOutput> Run(const std::vector<SequenceRequest>& requests);

  // The same by steps, for several runners that run theirs together.  Submit, then while is_busy()
  // Plan, Launch and Finish; the plan may be empty.
  void Submit(const std::vector<SequenceRequest>& requests);
  bool is_busy() const { return !scheduler_.running().empty() || !scheduler_.waiting().empty(); }
  BatchShape Plan();
  void Launch(const BatchShape& shape);
  void Finish();
  const std::vector<SequenceOutput>& outputs() const { return outputs_; }

  // Takes every second block and gives it back in another order, so that later sequences get
  // blocks that are neither consecutive nor ascending.
  void ShuffleFreeBlocks();

  // Called with each batch before it is run.
  std::function<void(const ForwardBatch&)> before_step;
  // Where a row of the step that has just been run was sent (route_watch.h).
  std::function<std::vector<std::int32_t>(std::int64_t row)> route_of_row;

  BlockPool& pool() { return pool_; }
  const KvArena& arena() const { return dynamic_cast<ModelExecutor&>(*executor_).arena(); }
  std::int64_t steps_recorded() const { return steps_recorded_; }  // of all runs
  std::int64_t steps() const { return steps_; }                    // likewise

 private:
  SequenceOutput& OutputOf(std::int32_t slot);
  void KeepLogits(const StepResult& result, std::span<const std::int32_t> slot_of_row);
  void TakeTokens(const StepResult& result);

  const RunOptions options_;
  std::int64_t vocabulary_;
  std::int64_t steps_recorded_ = 0;
  std::int64_t steps_ = 0;
  BlockPool pool_;
  PrefixCache cache_;
  PrefixHasher hasher_;
  StepCostModel costs_;
  Scheduler scheduler_;
  std::unique_ptr<StepExecutor> executor_;
  std::unique_ptr<BatchBuilder> builder_;

  std::vector<SequenceOutput> outputs_;
  std::vector<std::int32_t> output_of_slot_;
  // The step at hand.
  const StepPlan* plan_ = nullptr;
  ForwardBatch batch_{};
  std::vector<std::int32_t>
      logit_rows_;  // copies: a test may overwrite the batch once it is launched
  std::vector<std::int32_t> positions_;
};

}  // namespace dsa::testing
