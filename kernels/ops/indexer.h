// The lightning indexer of DeepSeek Sparse Attention: which keys a query attends to.
// DeepSeek-V3.2-Exp paper, section 2.1, eq. 1; rounding as in the official inference code.
//
//   score(t, s) = sum_h weight[t, h] * max(q[t, h] . k[s], 0)
//
// Keys are stored by StoreIndexerKey for every token on every path, queries prepared by
// PrepareIndexerQuery, scores computed by IndexerLogits, and SelectTopK picks the highest.
#pragma once

#include "common/view.h"
#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/rope.h"

#include <cstdint>

namespace dsa {

// k -> LayerNorm with bias (biased variance) -> round -> RoPE on the first 64 values -> round, and
// for the fp8 format -> Hadamard_128 / sqrt(128) -> round -> e4m3 with one power-of-two scale.
// round is to the type of k.  Hadamard: Sylvester (natural) order.
struct StoreIndexerKeyParams {
  ConstAnyMatrix k;                      // [T, 128]  f32 or bf16, output of indexer.wk
  Vector<const float> norm_weight;       // [128]
  Vector<const float> norm_bias;         // [128]
  float eps;                             // 1e-6 in every family
  Vector<const std::int32_t> positions;  // [T]
  RopeTable table;
  RopeLayout layout;
  Vector<const std::int64_t> slots;  // [T]  block * 64 + offset, all different
  IndexerCacheView cache;
};
struct StoreIndexerKeyExtents {
  std::int64_t tokens;  // T, may be 0
};
StoreIndexerKeyExtents Validate(const StoreIndexerKeyParams& params);

// q -> RoPE on the first 64 values of each head -> round, and for the fp8 format -> Hadamard ->
// round -> e4m3 with one power-of-two scale per head.  The scale, H^-1/2 and 128^-1/2 are folded
// into the head weights, in float32.
struct PrepareIndexerQueryParams {
  ConstAnyTensor3 q;                     // [T, H, 128]  f32 or bf16, output of indexer.wq_b
  Vector<const std::int32_t> positions;  // [T]
  RopeTable table;
  RopeLayout layout;
  KvFormat format;              // of the cache that the queries will meet
  ConstAnyMatrix head_weights;  // [T, H]  f32, output of indexer.weights_proj
  AnyTensor3 queries;           // [T, H, 128]  kFp8E4m3 for fp8, else the type of q
  Matrix<float> weights;        // [T, H]  head_weights * scale * H^-1/2 * 128^-1/2
};
struct PrepareIndexerQueryExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
};
PrepareIndexerQueryExtents Validate(const PrepareIndexerQueryParams& params);

// Scores of every visible key of every row.  scores[t, s] is written for s <= positions[t] and
// left alone beyond.  A row's scores do not depend on the other rows.
struct IndexerLogitsParams {
  ConstAnyTensor3 queries;      // [T, H, 128]  kFp8E4m3, f32 or bf16, matching the cache's format
  Matrix<const float> weights;  // [T, H]
  IndexerCacheView cache;
  PagedRows rows;        // [T]
  Matrix<float> scores;  // [T, C]  C > the largest position
};
struct IndexerLogitsExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
};
IndexerLogitsExtents Validate(const IndexerLogitsParams& params);

// The min(K, visible) positions with the highest scores, exactly, by a total order: higher score
// first, then lower position; -0 equals +0.  A NaN among the visible scores sets
// kRowFaultIndexerNan and selects positions 0 .. count - 1.
struct SelectTopKParams {
  Matrix<const float> scores;            // [T, C]
  Vector<const std::int32_t> positions;  // [T]  visible keys of row t: positions[t] + 1
  Matrix<std::int32_t> selected;         // [T, K]  ascending positions, then -1
  Vector<std::int32_t> counts;           // [T]  min(K, visible)
  Vector<std::int32_t> faults;           // [T]  bits of RowFault are added
};
struct SelectTopKExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t k;       // K, the columns of `selected`
};
SelectTopKExtents Validate(const SelectTopKParams& params);

}  // namespace dsa
