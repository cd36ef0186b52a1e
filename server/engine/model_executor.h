// Runs steps on one device, for a whole model or for one rank of it: one upload of what the batch
// builder packed, the block tables' changes, transformer and sampler, one download of tokens and
// faults, one wait; for tools also the logits. A whole model runs on the engine's thread; the ranks
// of one each on their own (server/engine/rank_group.h), and only the first of them samples, or of
// those of a data rank.  Owns
// the paged caches, the block tables, the workspaces and the RoPE tables; everything is allocated
// in Create.
//
// Batches of recorded shapes run by Record and Replay: what a step of the shape queues is recorded
// once and then repeated, on whatever the upload brings.
#pragma once

#include "cache/kv_arena.h"
#include "common/status.h"
#include "kernels/backend.h"
#include "model/activations.h"
#include "model/limits.h"
#include "model/model_config.h"
#include "model/rank_shape.h"
#include "model/rope_table.h"
#include "model/step_buffers.h"
#include "model/transformer.h"
#include "model/weights.h"
#include "server/engine/executor.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace dsa {

struct ModelExecutorConfig {
  StepLimits limits;
  std::int32_t blocks;  // of the paged caches; > 0; padding_blocks more are for rows of padding
  KvFormat kv_format;
  std::int32_t vocabulary_limit;  // ids from here on are never sampled; in [1, vocabulary]
  bool runs_ahead = false;        // the backend's ops return before they have run
  bool batch_invariant = false;   // of attention's sums; Backend::PlanAttention
  // Of this executor among the ranks; the first tensor rank of each data rank samples.
  RankPlace place{};
  // Recorded by Create, so that no step waits for it; others when they are first met.
  std::vector<StepShape> recorded{};
  std::int32_t padding_blocks = 1;
};

// What a ModelExecutor takes of the device's memory, in bytes.
struct ExecutorMemory {
  std::int64_t cache;      // both regions of all blocks, padding's included
  std::int64_t workspace;  // buffers of a step, on the device and on the host
  std::int64_t rope;       // tables of all positions
  std::int64_t scratch;    // of the backend

  std::int64_t total() const { return cache + workspace + rope + scratch; }
};

// What Create would take.  Pure arithmetic, with the backend's own numbers.
ExecutorMemory PlanMemory(const Backend& backend, const ModelConfig& model,
                          const ModelExecutorConfig& config);

// A model that is loaded.  What it refers to outlives the executor.
struct LoadedModel {
  const ModelConfig& config;
  const ModelWeights& weights;  // of ModelExecutorConfig::place
};

class ModelExecutor final : public StepExecutor {
 public:
  // Reserves the backend's scratch too, so a backend serves one executor.  FAILED_PRECONDITION
  // where the device has not the memory.
  static Result<std::unique_ptr<ModelExecutor>> Create(Backend& backend, const LoadedModel& model,
                                                       const ModelExecutorConfig& config);

  // What Create allocates and hands to the constructor.
  struct Memory {
    KvArena arena;
    Activations activations;
    DeviceRopeTable rope_table;
    HostBuffer inputs;   // as much as Buffer::kStepInputs
    HostBuffer outputs;  // twice as much as Buffer::kStepOutputs
    HostBuffer logits;   // logits_rows_host rows
  };
  ModelExecutor(Backend& backend, const LoadedModel& model, const ModelExecutorConfig& config,
                Memory memory);

  void BindThread() override { backend_.BindThread(); }
  void Launch(const ForwardBatch& batch) override;
  const StepResult& Collect() override;
  bool RunsAhead() const override { return config_.runs_ahead; }

  // Records what the last Launch queued under another id, for tools that leave parts of it out.
  void RecordLast(GraphId graph);

  // The changes of the block tables that a batch brings, for an executor that runs it otherwise.
  void ApplyTableUpdates(const ForwardBatch& batch);

  const KvArena& arena() const { return memory_.arena; }

 private:
  void Queue(const StepShape& shape);
  void Sample(const Matrix<const float>& logits, const StepInputs& inputs,
              const StepOutputs& outputs);
  GraphId Recorded(const StepShape& shape);
  void ClearBlockTables();

  Backend& backend_;
  const ModelConfig& model_config_;
  const ModelExecutorConfig config_;
  const ExpertExtents experts_;
  Memory memory_;
  // On the device.
  std::uint8_t* inputs_;
  std::uint8_t* outputs_;
  Matrix<std::int32_t> block_tables_;  // the last row is padding's
  Matrix<std::int32_t> adjustments_;   // in words; a row is a sequence's
  Transformer transformer_;
  std::vector<StepShape> recorded_;  // by GraphId
  StepShape launched_{};
  std::int64_t launched_logits_ = 0;
  // Results lie in the two halves of Memory::outputs by turns: one is read while the next is made.
  std::size_t output_half_bytes_;
  std::size_t output_offset_ = 0;
  StepResult result_{};
};

}  // namespace dsa
