//   s[j]        = softmax_scale * (q[h] . k[j])        q = q_latent | q_rope, k = c | k_r
//   p           = round(softmax(s))
//   o_latent[h] = round(sum over j of p[j] * c[j])
//
// Some heads of one row at a time, which share the keys that they read.
#include "kernels/ops/latent_attention.h"

#include "common/check.h"
#include "kernels/cpu/attention_scratch.h"
#include "kernels/cpu/cache_access.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/products.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/softmax.h"

#include <algorithm>

namespace dsa {
namespace {

using cpu::kLatentRecordValues;

// Some heads of one row.
struct Share {
  std::int64_t row;
  std::int64_t head;
  std::int64_t heads;  // at most kAttentionHeads
  std::int64_t keys;   // that the row attends to
};

void LoadQueries(const LatentAttentionParams& params, const Share& share, double* queries) {
  const ConstAnyTensor3& latent = params.q_latent;
  const ConstAnyTensor3& rope = params.q_rope;
  for (std::int64_t i = 0; i < share.heads; ++i) {
    const std::int64_t head = share.head + i;
    double* const query = queries + i * kLatentRecordValues;
    LoadRowWide(
        Offset(latent.data, latent.type, share.row * latent.row_stride + head * latent.head_stride),
        latent.type, kLatentValues, query);
    LoadRowWide(Offset(rope.data, rope.type, share.row * rope.row_stride + head * rope.head_stride),
                rope.type, kLatentRopeValues, query + kLatentValues);
  }
}

// Some of a share's keys, in the order in which they are attended to.
struct KeyRange {
  std::int64_t first;
  std::int64_t count;
};

void ReadKeys(const LatentAttentionParams& params, const Share& share, const KeyRange& range,
              float* keys) {
  constexpr std::int64_t kAhead = 3;  // keys
  const Matrix<const std::int32_t>& selected = params.selection.slots;
  const std::int64_t end = range.first + range.count;
  for (std::int64_t j = range.first; j < end; ++j) {
    const auto slot = [&](std::int64_t key) {
      return selected.data != nullptr ? std::int64_t{selected.Row(share.row)[key]}
                                      : cpu::SlotOf("LatentAttention", params.rows, share.row, key);
    };
    cpu::PrefetchLatent(params.cache, slot(std::min(j + kAhead, end - 1)));
    cpu::ReadLatent(params.cache, slot(j), keys);
    keys += kLatentRecordValues;
  }
}

// How many keys a row attends to: all visible ones or its selection.
std::int64_t AttendedKeys(const LatentAttentionParams& params, std::int64_t row) {
  const std::int64_t visible = cpu::VisibleKeys("LatentAttention", params.rows, row);
  const KeySelection& selection = params.selection;
  if (selection.slots.data == nullptr) {
    return visible;
  }
  const std::int64_t count = selection.counts.data[row];
  DSA_CHECK(count >= 0 && count <= selection.slots.cols,
            "LatentAttention: row {} selects {} keys of {}", row, count, selection.slots.cols);
  return count;
}

void Attend(const LatentAttentionParams& params, const Share& share,
            const AttentionScratch& scratch) {
  const std::int64_t stride = scratch.score_stride;
  double* const queries = scratch.queries.data();
  float* const keys = scratch.keys.data();
  double* const scores = scratch.scores.data();
  float* const probabilities = scratch.probabilities.data();
  float* const outputs = scratch.outputs.data();

  LoadQueries(params, share, queries);
  for (std::int64_t first = 0; first < share.keys; first += kAttentionKeys) {
    const std::int64_t count = std::min(kAttentionKeys, share.keys - first);
    ReadKeys(params, share, {.first = first, .count = count}, keys);
    cpu::ScoreMatrix({.rows = share.heads,
                      .columns = count,
                      .n = kLatentRecordValues,
                      .a = queries,
                      .a_stride = kLatentRecordValues,
                      .b = keys,
                      .b_stride = kLatentRecordValues,
                      .out = scores + first,
                      .out_stride = stride},
                     params.softmax_scale, cpu::EveryRow{});
  }
  for (std::int64_t i = 0; i < share.heads && share.keys > 0; ++i) {
    cpu::Softmax({.scores = scores + i * stride,
                  .probabilities = probabilities + i * stride,
                  .count = share.keys,
                  .type = params.q_latent.type});
  }
  std::fill_n(outputs, share.heads * kLatentValues, 0.0F);
  for (std::int64_t first = 0; first < share.keys; first += kAttentionKeys) {
    const std::int64_t count = std::min(kAttentionKeys, share.keys - first);
    if (share.keys > kAttentionKeys) {  // else they are still there
      ReadKeys(params, share, {.first = first, .count = count}, keys);
    }
    cpu::AddWeightedSum<cpu::Chunks::kApart, float>({.rows = share.heads,
                                                     .terms = count,
                                                     .width = kLatentValues,
                                                     .weights = probabilities + first,
                                                     .weight_stride = stride,
                                                     .b = keys,
                                                     .b_stride = kLatentRecordValues,
                                                     .out = outputs,
                                                     .out_stride = kLatentValues},
                                                    cpu::EveryRow{});
  }
  const AnyTensor3& target = params.o_latent;
  for (std::int64_t i = 0; i < share.heads; ++i) {
    const std::int64_t offset =
        share.row * target.row_stride + (share.head + i) * target.head_stride;
    StoreRow(outputs + i * kLatentValues, kLatentValues, Offset(target.data, target.type, offset),
             target.type);
  }
}

}  // namespace

void CpuBackend::Compute(const LatentAttentionParams& params) {
  const LatentAttentionExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  cpu::CheckGroups("LatentAttention", params.rows);
  // Fewer heads a share where rows alone would leave threads idle; a head's bits are the same.
  const std::int64_t threads = pool_.threads();
  const std::int64_t heads =
      std::clamp<std::int64_t>(extents.tokens * extents.heads / threads, 1, kAttentionHeads);
  const std::int64_t groups = (extents.heads + heads - 1) / heads;
  pool_.ParallelFor(extents.tokens * groups, Shares::kMany,
                    [&](std::int64_t first, std::int64_t last, int thread) {
                      const AttentionScratch& scratch =
                          ScratchFor(extents.tokens).attention[static_cast<std::size_t>(thread)];
                      for (std::int64_t item = first; item < last; ++item) {
                        const std::int64_t row = item / groups;
                        const std::int64_t head = item % groups * heads;
                        const Share share = {.row = row,
                                             .head = head,
                                             .heads = std::min(heads, extents.heads - head),
                                             .keys = AttendedKeys(params, row)};
                        DSA_CHECK(share.keys <= scratch.context_max,
                                  "LatentAttention: row {} attends to {} keys, scratch is for {}",
                                  row, share.keys, scratch.context_max);
                        Attend(params, share, scratch);
                      }
                    });
}

}  // namespace dsa
