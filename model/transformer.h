// The forward pass: residual stream, layers and head, over a batch of rows of many sequences.
// Order of operations and rounding follow DeepSeek-V3.2's inference code; what each op computes
// stands in kernels/ops/.
//
//   transformer.cpp  the layer loop, projections, head
//   attention.cpp    MLA: projections, cache writes, the four attention paths
//   indexer.cpp      which keys a row attends to
//   moe.cpp          dense MLP; gate, shared and routed experts
//
// Thread of the backend.  Everything it is given must outlive it.
#pragma once

#include "cache/kv_arena.h"
#include "common/view_parts.h"
#include "kernels/backend.h"
#include "kernels/batch_view.h"
#include "kernels/ops/key_selection.h"
#include "model/activations.h"
#include "model/model_config.h"
#include "model/step_shape.h"
#include "model/weights.h"

#include <cstdint>

namespace dsa {

// A step in device memory.
struct DeviceBatch {
  Vector<const std::int32_t> token_ids;     // [T]
  Vector<const std::int32_t> positions;     // [T]
  Vector<const std::int64_t> slots;         // [T]
  Vector<const std::int32_t> sequences;     // [T]  in [0, S)
  Matrix<const std::int32_t> block_tables;  // [S, B]
  Vector<const std::int32_t> logit_rows;    // [R]
  Vector<std::int32_t> row_faults;          // [T]  zero; bits of RowFault are added
};

// What a Transformer works with.
struct TransformerParts {
  Backend& backend;
  const ModelConfig& config;
  const ModelWeights& weights;
  RopeTable rope_table;  // positions up to the longest context
  const KvArena& arena;
  const Activations& activations;
};

class Transformer final {
 public:
  explicit Transformer(const TransformerParts& parts) : parts_(parts), backend_(parts.backend) {}

  // Writes the keys of every row into the arena and returns the logits [R, vocabulary] of the rows
  // asked for, valid until the next call.  Reads of the host what the shape says and nothing else,
  // so that what it queues can be recorded for every step of the shape.
  Matrix<const float> Forward(const StepShape& shape, const DeviceBatch& device);

 private:
  // Consecutive rows of the batch.
  struct RowRange {
    std::int64_t first;
    std::int64_t count;
  };
  // What feeds one or more projections.  fp8 weights read a quantized copy, which is made at most
  // once; there is one such copy at a time.
  struct ProjectionInput {
    AnyMatrix x;
    bool quantized = false;
  };
  struct Step {
    const StepShape& shape;
    const DeviceBatch& device;
    std::int64_t tokens;
  };

  // transformer.cpp
  void Project(ProjectionInput& input, const LinearWeight& weight, const AnyMatrix& y);
  void ProjectRows(ProjectionInput& input, RowRange rows, const LinearWeight& weight,
                   const AnyMatrix& y);
  void AddAndNorm(const Step& step, Vector<const float> norm_weight);
  Matrix<const float> Head(const Step& step);
  AnyMatrix Activation(Buffer buffer, const Step& step, std::int64_t cols) const;

  // attention.cpp
  void Attention(int layer, const Step& step);
  void WriteKeys(int layer, const Step& step, ProjectionInput& normed);
  void Attend(int layer, const Step& step, ProjectionInput& query_input, AttentionPath path,
              RowRange rows);
  void AttendLatent(int layer, const Step& step, RowRange rows, const KeySelection& selection);
  void AttendMasked(int layer, const Step& step, RowRange rows, const KeySelection& selection);
  PagedRows Paged(const Step& step, RowRange rows) const;
  AnyTensor3 QueryHeads(const Step& step, RowRange rows) const;

  // indexer.cpp
  void WriteIndexerKeys(int layer, const Step& step, ProjectionInput& normed);
  KeySelection SelectKeys(int layer, const Step& step, ProjectionInput& query_latent, RowRange rows,
                          bool as_mask);
  void PrepareQueries(int layer, const Step& step, ProjectionInput& query_latent, RowRange rows);

  // moe.cpp
  void FeedForward(int layer, const Step& step);
  void Mlp(const Step& step, ProjectionInput& input, const MlpWeights& weights);
  void Moe(const Step& step, const MoeWeights& weights);

  TransformerParts parts_;
  Backend& backend_;
};

}  // namespace dsa
