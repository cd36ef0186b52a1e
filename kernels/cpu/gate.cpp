#include "kernels/ops/gate.h"

#include "common/check.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/scratch.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dsa {
namespace {

// -inf marks what may not be chosen, or was; candidates are finite, so there are always enough.
constexpr float kUnavailable = -std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kTiny = 1e-20F;  // keeps a sum of zeros from dividing by zero

// The working values of one token.
struct GateRow {
  float* scores;        // [E]  logits, then sigmoids
  float* biased;        // [E]
  float* group_scores;  // [groups]
};

// NaN and -inf count as the lowest finite value.
float AsCandidate(float value) {
  return value > kLowest ? value : kLowest;
}

// Takes the largest value; the lower index on ties.
std::int64_t TakeLargest(float* values, std::int64_t count) {
  const std::int64_t best = std::max_element(values, values + count) - values;
  values[best] = kUnavailable;
  return best;
}

float SumOfTwoLargest(const float* values, std::int64_t count) {
  if (count == 1) {
    return values[0];
  }
  float first = kLowest;
  float second = kLowest;
  for (std::int64_t i = 0; i < count; ++i) {
    second = std::max(second, std::min(first, values[i]));
    first = std::max(first, values[i]);
  }
  return AsCandidate(first + second);
}

// Masks the experts of all but the best groups.
void KeepBestGroups(const GateParams& params, std::int64_t experts, const GateRow& row) {
  const std::int64_t group_size = experts / params.groups;
  for (std::int64_t g = 0; g < params.groups; ++g) {
    row.group_scores[g] = SumOfTwoLargest(row.biased + g * group_size, group_size);
  }
  for (std::int64_t kept = 0; kept < params.groups_kept; ++kept) {
    TakeLargest(row.group_scores, params.groups);
  }
  for (std::int64_t g = 0; g < params.groups; ++g) {
    if (row.group_scores[g] != kUnavailable) {
      std::fill_n(row.biased + g * group_size, group_size, kUnavailable);
    }
  }
}

void ChooseExperts(const GateParams& params, const GateExtents& extents, std::int64_t token,
                   const GateRow& row) {
  for (std::int64_t e = 0; e < extents.experts; ++e) {
    row.scores[e] = 1.0F / (1.0F + std::exp(-row.scores[e]));
    row.biased[e] = AsCandidate(row.scores[e] + params.bias.data[e]);
  }
  if (params.groups_kept < params.groups) {
    KeepBestGroups(params, extents.experts, row);
  }
  std::int32_t* experts = params.experts.Row(token);
  float* weights = params.weights.Row(token);
  float sum = 0.0F;
  for (std::int64_t k = 0; k < extents.experts_per_token; ++k) {
    experts[k] = static_cast<std::int32_t>(TakeLargest(row.biased, extents.experts));
    weights[k] = row.scores[experts[k]];
    sum += weights[k];
  }
  const float divisor = params.normalize ? sum + kTiny : 1.0F;
  for (std::int64_t k = 0; k < extents.experts_per_token; ++k) {
    weights[k] = weights[k] / divisor * params.scale;
  }
}

void CountPairs(const GateParams& params) {
  const std::int64_t rows =
      params.live_rows.data == nullptr ? params.experts.rows : params.live_rows.data[0];
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int32_t* const experts = params.experts.Row(t);
    for (std::int64_t k = 0; k < params.experts.cols; ++k) {
      ++params.expert_pairs.data[experts[k]];
    }
  }
}

}  // namespace

void CpuBackend::Compute(const GateParams& params) {
  const auto extents = Validate(params);
  const CpuScratch& scratch = ScratchFor(extents.tokens);
  DSA_CHECK(extents.experts <= scratch.limits.experts, "Gate: E={}, scratch is for {}",
            extents.experts, scratch.limits.experts);
  float* logits = scratch.experts.gate_logits.data();
  const MatmulProblem problem{
      .x = {.data = params.x.data, .type = params.x.type, .row_stride = params.x.row_stride},
      .weight = {.data = params.weight.data,
                 .type = params.weight.type,
                 .row_stride = params.weight.row_stride},
      .y = logits,
      .y_type = DataType::kF32,
      .y_row_stride = extents.experts,
      .rows = extents.tokens,
      .inputs = extents.hidden,
      .outputs = extents.experts,
  };
  pool_.ParallelFor(MatmulUnits(problem), [&](std::int64_t first, std::int64_t last, int thread) {
    RunMatmulUnits(problem, first, last, scratch.matmul[static_cast<std::size_t>(thread)]);
  });
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int thread) {
    const GateScratch& own = scratch.gate[static_cast<std::size_t>(thread)];
    for (std::int64_t t = first; t < last; ++t) {
      ChooseExperts(params, extents, t,
                    {.scores = logits + t * extents.experts,
                     .biased = own.biased.data(),
                     .group_scores = own.group_scores.data()});
    }
  });
  if (params.expert_pairs.data != nullptr) {
    CountPairs(params);
  }
}

}  // namespace dsa
