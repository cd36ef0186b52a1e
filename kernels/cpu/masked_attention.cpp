//   k[h, j] = round(W_UK[h] c[j]) | k_r[j]        v[h, j] = round(W_UV[h] c[j])
//   s[j]    = softmax_scale * (q[h] . k[h, j])
//   o[h]    = round(sum over j of round(softmax(s))[j] * v[h, j])
//
// One head at a time; its keys and values are expanded once per run of rows.
#include "kernels/ops/masked_attention.h"

#include "common/check.h"
#include "kernels/cpu/attention_scratch.h"
#include "kernels/cpu/cache_access.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/products.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/softmax.h"

#include <algorithm>
#include <bit>

namespace dsa {
namespace {

using cpu::kLatentRecordValues;

// The widths of one head's rows in scratch, rounded up to whole vectors.
struct HeadShape {
  std::int64_t nope;
  std::int64_t value;
  std::int64_t key_width;
  std::int64_t value_width;
};

// Consecutive rows of one sequence.
struct Run {
  std::int64_t first;
  std::int64_t last;      // one past the end
  std::int64_t keys_max;  // visible to any of its rows
};

Run FindRun(const PagedRows& rows, std::int64_t first) {
  Run run = {.first = first, .last = first, .keys_max = 0};
  const std::int32_t sequence = rows.sequences.data[first];
  for (; run.last < rows.sequences.size && rows.sequences.data[run.last] == sequence; ++run.last) {
    run.keys_max = std::max(run.keys_max, std::int64_t{rows.positions.data[run.last]} + 1);
  }
  return run;
}

// W_UK[head] [N, 512], then W_UV[head] [V, 512].
void LoadWeights(const MaskedAttentionParams& params, std::int64_t head, float* weights) {
  for (const ConstAnyTensor3* tensor : {&params.w_uk, &params.w_uv}) {
    for (std::int64_t row = 0; row < tensor->heads; ++row) {
      const std::int64_t offset = head * tensor->row_stride + row * tensor->head_stride;
      LoadRow(Offset(tensor->data, tensor->type, offset), tensor->type, kLatentValues, weights);
      weights += kLatentValues;
    }
  }
}

// One head of the op on one thread; its weights are in scratch.
struct HeadContext {
  const MaskedAttentionParams& params;
  const HeadShape& shape;
  const AttentionScratch& scratch;
  std::int64_t head;
};

// Keys and values at every position that the run sees.
void Expand(const HeadContext& context, const Run& run) {
  const auto& [params, shape, scratch, head] = context;
  float* const latents = scratch.keys.data();
  for (std::int64_t first = 0; first < run.keys_max; first += kAttentionKeys) {
    const std::int64_t count = std::min(kAttentionKeys, run.keys_max - first);
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t slot = cpu::SlotOf("MaskedAttention", params.rows, run.first, first + j);
      cpu::ReadLatent(params.cache, slot, latents + j * kLatentRecordValues);
    }
    float* const keys = scratch.expanded_keys.data() + first * shape.key_width;
    float* const values = scratch.expanded_values.data() + first * shape.value_width;
    cpu::ProductProblem<float, float, float> dots = {.rows = count,
                                                     .columns = shape.nope,
                                                     .n = kLatentValues,
                                                     .a = latents,
                                                     .a_stride = kLatentRecordValues,
                                                     .b = scratch.weights.data(),
                                                     .b_stride = kLatentValues,
                                                     .out = keys,
                                                     .out_stride = shape.key_width};
    cpu::DotMatrix(dots);
    dots.columns = shape.value;
    dots.b += shape.nope * kLatentValues;
    dots.out = values;
    dots.out_stride = shape.value_width;
    cpu::DotMatrix(dots);
    for (std::int64_t j = 0; j < count; ++j) {
      float* const key = keys + j * shape.key_width;
      RoundRow(key, shape.nope, params.q.type);
      float* const rest = std::copy_n(latents + j * kLatentRecordValues + kLatentValues,
                                      kLatentRopeValues, key + shape.nope);
      std::fill(rest, key + shape.key_width, 0.0F);
      float* const value = values + j * shape.value_width;
      RoundRow(value, shape.value, params.q.type);
      std::fill(value + shape.value, value + shape.value_width, 0.0F);
    }
  }
}

// The positions that the mask of a row admits, ascending; returns their number.
std::int64_t ListAdmitted(const Matrix<const std::uint64_t>& mask, std::int64_t row,
                          std::int64_t visible, std::int32_t* positions) {
  DSA_CHECK(visible <= mask.cols * 64,
            "MaskedAttention: row {} sees {} keys, its mask has {} words", row, visible, mask.cols);
  std::int64_t count = 0;
  for (std::int64_t word = 0; word * 64 < visible; ++word) {
    for (std::uint64_t bits = mask.Row(row)[word]; bits != 0; bits &= bits - 1) {
      const std::int64_t position = word * 64 + std::countr_zero(bits);
      DSA_CHECK(position < visible, "MaskedAttention: row {} sees {} keys, selects position {}",
                row, visible, position);
      positions[count++] = static_cast<std::int32_t>(position);
    }
  }
  return count;
}

// The query in scratch meets `keys` keys.  What the mask hides is not computed.
template <typename Index>
void AttendTo(const HeadContext& context, std::int64_t keys, Index index) {
  const auto& [params, shape, scratch, head] = context;
  double* const scores = scratch.scores.data();
  float* const probabilities = scratch.probabilities.data();
  float* const output = scratch.outputs.data();
  cpu::ScoreMatrix({.rows = 1,
                    .columns = keys,
                    .n = shape.key_width,
                    .a = scratch.queries.data(),
                    .a_stride = shape.key_width,
                    .b = scratch.expanded_keys.data(),
                    .b_stride = shape.key_width,
                    .out = scores,
                    .out_stride = keys},
                   params.softmax_scale, index);
  if (keys > 0) {
    cpu::Softmax(
        {.scores = scores, .probabilities = probabilities, .count = keys, .type = params.q.type});
  }
  std::fill_n(output, shape.value_width, 0.0F);
  cpu::AddWeightedSum<cpu::Chunks::kApart, float>({.rows = 1,
                                                   .terms = keys,
                                                   .width = shape.value_width,
                                                   .weights = probabilities,
                                                   .weight_stride = keys,
                                                   .b = scratch.expanded_values.data(),
                                                   .b_stride = shape.value_width,
                                                   .out = output,
                                                   .out_stride = shape.value_width},
                                                  index);
}

void Attend(const HeadContext& context, std::int64_t row) {
  const auto& [params, shape, scratch, head] = context;
  const std::int64_t visible = cpu::VisibleKeys("MaskedAttention", params.rows, row);
  double* const query = scratch.queries.data();
  const ConstAnyTensor3& q = params.q;
  LoadRowWide(Offset(q.data, q.type, row * q.row_stride + head * q.head_stride), q.type, q.cols,
              query);
  std::fill(query + q.cols, query + shape.key_width, 0.0);
  if (params.selection.mask.data == nullptr) {
    AttendTo(context, visible, cpu::EveryRow{});
  } else {
    std::int32_t* const admitted = scratch.admitted.data();
    const std::int64_t keys = ListAdmitted(params.selection.mask, row, visible, admitted);
    AttendTo(context, keys, cpu::ListedRows{admitted});
  }
  const AnyTensor3& o = params.o;
  StoreRow(scratch.outputs.data(), shape.value,
           Offset(o.data, o.type, row * o.row_stride + head * o.head_stride), o.type);
}

}  // namespace

void CpuBackend::Compute(const MaskedAttentionParams& params) {
  const MaskedAttentionExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  cpu::CheckGroups("MaskedAttention", params.rows);
  const AttentionScratch& limits = ScratchFor(extents.tokens).attention.front();
  const HeadShape shape = {
      .nope = extents.nope,
      .value = extents.value,
      .key_width = (extents.nope + kLatentRopeValues + kLanes - 1) / kLanes * kLanes,
      .value_width = (extents.value + kLanes - 1) / kLanes * kLanes};
  DSA_CHECK(shape.key_width <= limits.key_width && shape.value_width <= limits.value_width,
            "MaskedAttention: N={} V={}, scratch is for N+R={} V={}", extents.nope, extents.value,
            limits.key_width, limits.value_width);
  pool_.ParallelFor(extents.heads, [&](std::int64_t first, std::int64_t last, int thread) {
    const AttentionScratch& scratch =
        ScratchFor(extents.tokens).attention[static_cast<std::size_t>(thread)];
    for (std::int64_t head = first; head < last; ++head) {
      const HeadContext context = {
          .params = params, .shape = shape, .scratch = scratch, .head = head};
      LoadWeights(params, head, scratch.weights.data());
      for (std::int64_t row = 0; row < extents.tokens;) {
        const Run run = FindRun(params.rows, row);
        DSA_CHECK(run.keys_max <= scratch.masked_context_max,
                  "MaskedAttention: row {} sees up to {} keys, scratch is for {}", row,
                  run.keys_max, scratch.masked_context_max);
        Expand(context, run);
        for (; row < run.last; ++row) {
          Attend(context, row);
        }
      }
    }
  });
}

}  // namespace dsa
