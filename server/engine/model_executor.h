// Runs steps on one device: copies the batch there, runs the transformer and the sampler, copies
// tokens, faults and, for tools, logits back.  World size 1, so it runs on the engine's thread.
// Owns the paged caches, the workspaces and the RoPE tables; everything is allocated in Create.
#pragma once

#include "cache/kv_arena.h"
#include "common/status.h"
#include "kernels/backend.h"
#include "model/activations.h"
#include "model/limits.h"
#include "model/model_config.h"
#include "model/rope_table.h"
#include "model/transformer.h"
#include "model/weights.h"
#include "server/engine/executor.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace dsa {

struct ModelExecutorConfig {
  StepLimits limits;
  std::int32_t blocks;  // of the paged caches; > 0
  KvFormat kv_format;
  std::int32_t vocabulary_limit;  // ids from here on are never sampled; in [1, vocabulary]
};

// What a ModelExecutor takes of the device's memory, in bytes.
struct ExecutorMemory {
  std::int64_t cache;      // both regions of all blocks
  std::int64_t workspace;  // buffers of a step
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
  const ModelWeights& weights;
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
  };
  ModelExecutor(Backend& backend, const LoadedModel& model, const ModelExecutorConfig& config,
                Memory memory);

  void BindThread() override { backend_.BindThread(); }
  const StepResult& Execute(const ForwardBatch& batch) override;

  const KvArena& arena() const { return arena_; }

 private:
  DeviceBatch CopyBatch(const ForwardBatch& batch);
  void Sample(const ForwardBatch& batch, const Matrix<const float>& logits);
  void CopyResult(const ForwardBatch& batch, const DeviceBatch& device,
                  const Matrix<const float>& logits);
  template <typename T>
  Vector<T> CopyIn(Buffer buffer, std::span<const T> values);
  template <typename T>
  std::span<const T> CopyOut(Buffer buffer, std::vector<T>& target, std::size_t count);

  Backend& backend_;
  const ModelConfig& model_config_;
  const ModelExecutorConfig config_;
  KvArena arena_;
  Activations activations_;
  DeviceRopeTable rope_table_;
  Transformer transformer_;

  // Results on the host, at their largest.
  std::vector<std::int32_t> tokens_;
  std::vector<float> logprobs_;
  std::vector<std::int32_t> top_ids_;
  std::vector<float> top_logprobs_;
  std::vector<std::int32_t> row_faults_;
  std::vector<std::int32_t> sample_faults_;
  std::vector<float> logits_;
  StepResult result_{};
};

}  // namespace dsa
