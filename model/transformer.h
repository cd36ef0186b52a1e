// The forward pass: residual stream, layers and head, over a batch of rows of many sequences.
// Order of operations and rounding follow DeepSeek-V3.2's inference code; what each op computes
// stands in kernels/fused/ and kernels/ops/.
//
//   transformer.cpp  the layer loop, norms, head
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
#include "kernels/fused/activation.h"
#include "kernels/fused/attend.h"
#include "kernels/fused/gated_mlp.h"
#include "kernels/fused/project.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/key_selection.h"
#include "model/activations.h"
#include "model/model_config.h"
#include "model/rank_shape.h"
#include "model/step_shape.h"
#include "model/weights.h"

#include <cstdint>
#include <optional>

namespace dsa {

// A step in device memory.
struct DeviceBatch {
  Vector<const std::int32_t> token_ids;     // [T]
  Vector<const std::int32_t> positions;     // [T]
  Vector<const std::int64_t> slots;         // [T]
  Vector<const std::int32_t> sequences;     // [T]  in [0, S)
  Matrix<const std::int32_t> block_tables;  // [S, B]
  Vector<const std::int32_t> logit_rows;    // [R]
  Vector<const std::int32_t> live_rows{};   // [1]  rows that are not padding; null: all
  Vector<std::int32_t> row_faults;          // [T]  zero; bits of RowFault are added
  Matrix<std::int32_t> expert_pairs{};      // [L, E]  += live rows that chose the expert; or null
};

// What a Transformer works with.
struct TransformerParts {
  Backend& backend;
  const ModelConfig& config;
  const ModelWeights& weights;
  RopeTable rope_table;  // positions up to the longest context
  const KvArena& arena;
  const Activations& activations;
  RankShape rank;        // what `weights` are of
  bool batch_invariant;  // Backend::PlanAttention
  // Of data ranks: what experts give comes back as parts (kernels/comm/collectives.h), where it
  // can.
  bool combines_parts = false;
};

// What a layer is to the ops: its weights and its part of the caches.
struct LayerView {
  const LayerWeights& weights;
  LatentCacheView latent;
  // data null: the layer uses the selection of an earlier one, or the model is served without any,
  // whatever its weights have.
  IndexerCacheView indexer;
  std::int64_t expert_layer;  // of the layers that have experts; below 0: not one of them

  bool has_indexer() const { return indexer.data != nullptr; }
};

class Transformer final {
 public:
  explicit Transformer(const TransformerParts& parts);

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
  struct Step {
    const StepShape& shape;
    const DeviceBatch& device;
    std::int64_t tokens;

    bool selects() const { return Any(Selects); }      // some row attends to a selection
    bool has_masked() const { return Any(IsMasked); }  // or to expanded keys and values

   private:
    bool Any(bool (*has)(AttentionPath)) const;  // indexer.cpp
  };
  // What an indexer needs projected; unused where the layer has none, or no row selects.
  struct IndexerRows {
    Projection key;           // of normed
    Projection query;         // of the query latent
    Projection head_weights;  // of normed
  };

  // transformer.cpp
  void ComputeForOthers(const Step& step);
  LayerView Layer(int layer) const;
  enum class BranchKind { kWhole, kPart };  // all of it, or a part beside those of tensor ranks
  BranchKind AttentionBranch() const { return KindOf(rank_.ranks > 1); }
  BranchKind FeedForwardBranch(const LayerWeights& layer) const;
  static BranchKind KindOf(bool is_part) {
    return is_part ? BranchKind::kPart : BranchKind::kWhole;
  }
  void AddBranchAndNorm(const Step& step, BranchKind kind, Vector<const float> norm_weight);
  Matrix<const float> Head(const Step& step);
  Matrix<const float> GatherLogits(std::int64_t rows, Matrix<float> logits);
  // Where attention and feed-forward leave what is added to the residual: all of it or, with other
  // tensor ranks, this one's part, not rounded.
  AnyMatrix Branch(const Step& step, BranchKind kind) const;
  AnyMatrix Partial(Buffer buffer, std::int64_t rows) const;
  void ClearBranch(const Step& step, BranchKind kind);
  // A buffer as activations of the step; and, where the model has fp8 weights, with its fp8 copy.
  AnyMatrix Values(Buffer buffer, const Step& step, std::int64_t cols) const;
  Activation WithFp8(const AnyMatrix& x, Buffer values, Buffer scales) const;
  Activation Normed(const Step& step) const;

  // attention.cpp
  void Attention(const LayerView& layer, const Step& step);
  void WriteKeys(const LayerView& layer, const Step& step, const Activation& query_latent);
  // `is_absorbed`: Project has rotated and absorbed all queries.
  void Attend(const LayerView& layer, const Step& step, AttentionPath path, RowRange rows,
              bool is_absorbed);
  AnyMatrix KeyValue(const Step& step) const;
  AnyMatrix AbsorbedQuery(const Step& step) const;
  Activation AttentionOutput(const Step& step) const;
  PagedRows Paged(const Step& step, RowRange rows) const;

  // indexer.cpp
  IndexerRows RowsOfIndexer(const LayerView& layer, const Step& step) const;
  // `absorbed` where the layer has an indexer of its own.
  KeySelection SelectKeys(const LayerView& layer, const Step& step, RowRange rows, bool as_mask,
                          const std::optional<QueriesToAbsorb>& absorbed);
  AnyMatrix IndexQuery(const Step& step) const;
  AnyMatrix IndexHeadWeights(const Step& step) const;

  // moe.cpp
  void FeedForward(const LayerView& layer, const Step& step);
  GatedMlpParams Mlp(const Step& step, const MlpWeights& weights, std::int64_t width,
                     const AnyMatrix& branch) const;
  void Moe(const LayerView& layer, const Step& step);
  void ExchangedMoe(const LayerView& layer, const Step& step);
  GateParams Gate(const LayerView& layer, const Step& step) const;

  TransformerParts parts_;
  Backend& backend_;
  RankShape rank_;
};

}  // namespace dsa
