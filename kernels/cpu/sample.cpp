#include "kernels/ops/sample.h"

#include "common/check.h"
#include "common/prng.h"
#include "kernels/batch_view.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/scratch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace dsa {
namespace {

constexpr float kNotAllowed = -std::numeric_limits<float>::infinity();

// What is being decided for one row.  `logits` are the allowed ones, adjusted; -inf elsewhere.
struct Candidates {
  std::span<const float> logits;  // [vocabulary_limit]
  std::span<double> weights;      // [vocabulary_limit]
  std::span<std::int32_t> order;  // [vocabulary_limit]  scratch
  float largest;
};

// The total order of candidates: higher logit first, then lower id.
struct MoreLikely {
  std::span<const float> logits;
  bool operator()(std::int32_t a, std::int32_t b) const {
    const float left = logits[static_cast<std::size_t>(a)];
    const float right = logits[static_cast<std::size_t>(b)];
    return left > right || (left == right && a < b);
  }
};

std::span<const LogitAdjustment> AdjustmentsOf(const SampleParams& params,
                                               const SamplingRow& wanted) {
  DSA_CHECK(wanted.adjustments_first >= 0 && wanted.adjustments_count >= 0 &&
                wanted.adjustments_first + wanted.adjustments_count <= params.adjustments.size,
            "Sample: adjustments [{}, +{}) of {}", wanted.adjustments_first,
            wanted.adjustments_count, params.adjustments.size);
  return {params.adjustments.data + wanted.adjustments_first,
          static_cast<std::size_t>(wanted.adjustments_count)};
}

void ApplyMask(const SampleParams& params, std::int32_t mask, std::span<float> target) {
  constexpr std::size_t kBits = 64;
  DSA_CHECK(mask < params.masks.rows, "Sample: mask {} of {}", mask, params.masks.rows);
  const std::uint64_t* words = params.masks.Row(mask);
  for (std::size_t id = 0; id < target.size(); ++id) {
    if ((words[id / kBits] >> (id % kBits) & 1U) == 0) {
      target[id] = kNotAllowed;
    }
  }
}

// Copies the allowed logits; false where one below the limit is not finite.
bool CopyAllowed(const SampleParams& params, std::int64_t row, std::span<float> target) {
  const SamplingRow& wanted = params.rows.data[row];
  const std::int32_t source = params.logit_rows.data[row];
  DSA_CHECK(source >= 0 && source < params.logits.rows, "Sample: logit_rows[{}]={} of {}", row,
            source, params.logits.rows);
  const float* logits = params.logits.Row(source);
  bool finite = true;
  for (std::size_t i = 0; i < target.size(); ++i) {
    target[i] = logits[i];
    finite = finite && std::isfinite(logits[i]);
  }
  if (wanted.mask >= 0) {
    ApplyMask(params, wanted.mask, target);
  }
  for (const LogitAdjustment& adjustment : AdjustmentsOf(params, wanted)) {
    DSA_CHECK(adjustment.id >= 0 && adjustment.id < params.logits.cols,
              "Sample: adjusted id {}, V={}", adjustment.id, params.logits.cols);
    if (adjustment.id < params.vocabulary_limit && adjustment.add == kNotAllowed) {
      target[static_cast<std::size_t>(adjustment.id)] = kNotAllowed;
    }
  }
  return finite;
}

void Adjust(const SampleParams& params, const SamplingRow& wanted, std::span<float> logits) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const LogitAdjustment& adjustment : AdjustmentsOf(params, wanted)) {
    if (adjustment.id >= params.vocabulary_limit) {
      continue;
    }
    float& logit = logits[static_cast<std::size_t>(adjustment.id)];
    if (logit != kNotAllowed) {
      const float repeated =
          logit > 0.0F ? logit / adjustment.repetition : logit * adjustment.repetition;
      logit = std::clamp(std::clamp(repeated, -kLargest, kLargest) + adjustment.add, -kLargest,
                         kLargest);
    }
  }
}

// log(sum(exp(logits)))
double LogSum(std::span<const float> logits, float largest) {
  double sum = 0.0;
  for (const float logit : logits) {
    sum += std::exp(static_cast<double>(logit) - largest);
  }
  return largest + std::log(sum);
}

double SumOfWeights(const Candidates& candidates, std::span<const std::int32_t> ids) {
  double sum = 0.0;
  for (const std::int32_t id : ids) {
    sum += candidates.weights[static_cast<std::size_t>(id)];
  }
  return sum;
}

// The fewest ids, most likely first, whose share reaches `top_p`.  Few are enough as a rule, so the
// ids are sorted in growing pieces.
std::span<std::int32_t> MostLikely(double top_p, const Candidates& candidates,
                                   std::span<std::int32_t> ids) {
  const MoreLikely more_likely{candidates.logits};
  const double wanted_sum = top_p * SumOfWeights(candidates, ids);
  double sum = 0.0;
  std::size_t sorted = 0;
  for (std::size_t piece = 64; sorted < ids.size(); piece *= 4) {
    const std::span<std::int32_t> rest = ids.subspan(sorted);
    const std::size_t count = std::min(piece, rest.size());
    const auto end = rest.begin() + static_cast<std::ptrdiff_t>(count);
    if (count < rest.size()) {
      std::nth_element(rest.begin(), end - 1, rest.end(), more_likely);
    }
    std::sort(rest.begin(), end, more_likely);
    for (std::size_t i = 0; i < count; ++i) {
      sum += candidates.weights[static_cast<std::size_t>(rest[i])];
      if (sum >= wanted_sum) {
        return ids.first(sorted + i + 1);
      }
    }
    sorted += count;
  }
  return ids;
}

// The ids that survive min_p, top_k and top_p, in no order; their weights are filled.
std::span<std::int32_t> Filter(const SamplingRow& wanted, const Candidates& candidates) {
  const double temperature = wanted.temperature;
  const MoreLikely more_likely{candidates.logits};
  // p / max p >= min_p, taken as a bound on logits: exact for min_p = 1.
  const double lowest = wanted.min_p > 0.0F ? temperature * std::log(double{wanted.min_p})
                                            : -std::numeric_limits<double>::infinity();
  std::size_t count = 0;
  for (std::size_t id = 0; id < candidates.logits.size(); ++id) {
    const double below = static_cast<double>(candidates.logits[id]) - candidates.largest;
    if (candidates.logits[id] != kNotAllowed && below >= lowest) {
      candidates.order[count++] = static_cast<std::int32_t>(id);
      candidates.weights[id] = std::exp(below / temperature);
    }
  }
  std::span<std::int32_t> kept = candidates.order.first(count);
  const auto top_k = static_cast<std::size_t>(wanted.top_k);
  if (top_k > 0 && top_k < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + wanted.top_k - 1, kept.end(), more_likely);
    kept = kept.first(top_k);
  }
  return wanted.top_p < 1.0F ? MostLikely(wanted.top_p, candidates, kept) : kept;
}

// One draw over the kept ids in ascending order.
std::int32_t Draw(const SamplingRow& wanted, const Candidates& candidates,
                  std::span<std::int32_t> kept) {
  if (!std::is_sorted(kept.begin(), kept.end())) {  // as it is where no filter reordered it
    std::sort(kept.begin(), kept.end());
  }
  const double target = SumOfWeights(candidates, kept) *
                        CounterUniform(wanted.seed, static_cast<std::uint64_t>(wanted.position));
  double sum = 0.0;
  std::int32_t drawn = kept.front();
  for (const std::int32_t id : kept) {
    const double weight = candidates.weights[static_cast<std::size_t>(id)];
    if (weight > 0.0) {
      drawn = id;
    }
    sum += weight;
    if (sum > target) {
      break;
    }
  }
  return drawn;
}

// `logits` are the allowed ones, raw; `order` is scratch of as many.
void FillTop(const SampleParams& params, std::int64_t row, std::span<const float> logits,
             std::span<std::int32_t> order, double log_sum) {
  const SamplingRow& wanted = params.rows.data[row];
  DSA_CHECK(wanted.top_logprobs >= 0 && wanted.top_logprobs <= kTopLogprobsMax,
            "Sample: top_logprobs={}, limit {}", wanted.top_logprobs, kTopLogprobsMax);
  std::size_t count = 0;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] != kNotAllowed) {
      order[count++] = static_cast<std::int32_t>(id);
    }
  }
  const std::size_t filled = std::min(count, static_cast<std::size_t>(wanted.top_logprobs));
  const std::span<std::int32_t> ids = order.first(count);
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(filled), ids.end(),
                    MoreLikely{logits});
  for (std::size_t i = 0; i < filled; ++i) {
    params.top_ids.Row(row)[i] = ids[i];
    params.top_logprobs.Row(row)[i] =
        static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(ids[i])]) - log_sum);
  }
}

void SampleRow(const SampleParams& params, std::int64_t row, const SampleScratch& scratch) {
  const auto limit = static_cast<std::size_t>(params.vocabulary_limit);
  const SamplingRow& wanted = params.rows.data[row];
  std::fill_n(params.top_ids.Row(row), kTopLogprobsMax, -1);
  std::fill_n(params.top_logprobs.Row(row), kTopLogprobsMax, 0.0F);
  params.tokens.data[row] = 0;
  params.logprobs.data[row] = 0.0F;

  // Allowed.
  const std::span<float> logits(scratch.logits.data(), limit);
  const std::span<std::int32_t> order(scratch.order.data(), limit);
  if (!CopyAllowed(params, row, logits)) {
    params.faults.data[row] |= kRowFaultLogits;
    return;
  }
  const float largest = *std::max_element(logits.begin(), logits.end());
  if (largest == kNotAllowed) {
    params.faults.data[row] |= kRowFaultNoCandidate;
    return;
  }

  // Log-probabilities.
  const double log_sum = LogSum(logits, largest);
  FillTop(params, row, logits, order, log_sum);

  // Draw.
  Adjust(params, wanted, logits);
  const auto best = std::max_element(logits.begin(), logits.end());
  const Candidates candidates{.logits = logits,
                              .weights = {scratch.weights.data(), limit},
                              .order = order,
                              .largest = *best};
  auto token = static_cast<std::int32_t>(best - logits.begin());
  if (wanted.temperature > 0.0F) {
    token = Draw(wanted, candidates, Filter(wanted, candidates));
  }
  params.tokens.data[row] = token;
  params.logprobs.data[row] = static_cast<float>(
      static_cast<double>(params.logits.Row(params.logit_rows.data[row])[token]) - log_sum);
}

}  // namespace

void CpuBackend::Compute(const SampleParams& params) {
  const auto extents = Validate(params);
  const CpuScratch& scratch = ScratchFor(extents.rows);
  DSA_CHECK(extents.vocabulary <= scratch.limits.vocabulary, "Sample: V={}, scratch is for {}",
            extents.vocabulary, scratch.limits.vocabulary);
  pool_.ParallelFor(extents.rows, [&](std::int64_t first, std::int64_t last, int thread) {
    for (std::int64_t row = first; row < last; ++row) {
      SampleRow(params, row, scratch.sample[static_cast<std::size_t>(thread)]);
    }
  });
}

}  // namespace dsa
