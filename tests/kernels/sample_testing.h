// What the tests of Sample share: one way to run the op, and the sampled token, restated.
#pragma once

#include "common/prng.h"
#include "kernels/batch_view.h"
#include "kernels/ops/sample.h"
#include "tests/kernels/test_backend.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace dsa::testing::sample {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr SamplingRow kGreedy{.temperature = 0.0F,
                                     .min_p = 0.0F,
                                     .top_p = 1.0F,
                                     .top_k = 0,
                                     .seed = 0,
                                     .position = 0,
                                     .adjustments_first = 0,
                                     .adjustments_count = 0,
                                     .top_logprobs = 0};

struct Request {
  std::vector<std::vector<float>> logits;  // of equal length V
  std::vector<std::int32_t> logit_rows;    // empty: 0, 1, ...
  std::vector<SamplingRow> rows;
  std::vector<LogitAdjustment> adjustments;
  std::int32_t vocabulary_limit;
  std::vector<std::uint64_t> masks = {};  // rows of ceil(V / 64) words
};

inline std::vector<LogitAdjustment> Suppressing(const std::vector<std::int32_t>& ids) {
  std::vector<LogitAdjustment> adjustments;
  for (const std::int32_t id : ids) {
    adjustments.push_back({.id = id, .add = -kInfinity, .repetition = 1.0F});
  }
  return adjustments;
}

struct Sampled {
  std::vector<std::int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::int32_t> top_ids;
  std::vector<float> top_logprobs;
  std::vector<std::int32_t> faults;
};

// The fault words start with a foreign bit, which must survive.
inline constexpr std::int32_t kForeignFault = 64;

inline Sampled Run(Backend& backend, const Request& request) {
  const auto rows = static_cast<std::int64_t>(request.rows.size());
  std::vector<float> flat;
  for (const auto& row : request.logits) {
    flat.insert(flat.end(), row.begin(), row.end());
  }
  std::vector<std::int32_t> logit_rows = request.logit_rows;
  if (logit_rows.empty()) {
    logit_rows.resize(request.rows.size());
    std::iota(logit_rows.begin(), logit_rows.end(), 0);
  }
  const auto logit_count = static_cast<std::int64_t>(request.logits.size());
  const auto vocabulary = static_cast<std::int64_t>(request.logits.front().size());
  const DeviceArray<float> logits(backend, flat);
  const DeviceArray<std::int32_t> sources(backend, logit_rows);
  const DeviceArray<SamplingRow> wanted(backend, request.rows);
  const DeviceArray<LogitAdjustment> adjustments(backend, request.adjustments);
  const DeviceArray<std::uint64_t> masks(backend, request.masks);
  const std::int64_t mask_words = (vocabulary + 63) / 64;
  const auto tokens = DeviceArray<std::int32_t>::Poisoned(backend, rows);
  const auto logprobs = DeviceArray<float>::Poisoned(backend, rows);
  const auto top_ids = DeviceArray<std::int32_t>::Poisoned(backend, rows * kTopLogprobsMax);
  const auto top_logprobs = DeviceArray<float>::Poisoned(backend, rows * kTopLogprobsMax);
  const DeviceArray<std::int32_t> faults(
      backend, std::vector<std::int32_t>(request.rows.size(), kForeignFault));
  backend.Sample({.logits = logits.AsConstMatrix(logit_count, vocabulary),
                  .logit_rows = sources.AsConstVector(),
                  .rows = wanted.AsConstVector(),
                  .adjustments = adjustments.AsConstVector(),
                  .masks = masks.AsConstMatrix(masks.size() / mask_words, mask_words),
                  .vocabulary_limit = request.vocabulary_limit,
                  .tokens = tokens.AsVector(),
                  .logprobs = logprobs.AsVector(),
                  .top_ids = top_ids.AsMatrix(rows, kTopLogprobsMax),
                  .top_logprobs = top_logprobs.AsMatrix(rows, kTopLogprobsMax),
                  .faults = faults.AsVector()});
  return {.tokens = tokens.Download(),
          .logprobs = logprobs.Download(),
          .top_ids = top_ids.Download(),
          .top_logprobs = top_logprobs.Download(),
          .faults = faults.Download()};
}

inline Sampled RunOne(std::vector<float> logits, const SamplingRow& row) {
  const auto limit = static_cast<std::int32_t>(logits.size());
  return Run(TestBackend(), {.logits = {std::move(logits)},
                             .logit_rows = {},
                             .rows = {row},
                             .adjustments = {},
                             .vocabulary_limit = limit});
}

inline SamplingRow Random(float temperature) {
  SamplingRow row = kGreedy;
  row.temperature = temperature;
  return row;
}

// The sampled token, restated: sort everything, filter, renormalise, draw in order of id.
inline std::int32_t Expected(const std::vector<float>& logits, const SamplingRow& row) {
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
  const double largest = logits[ids.front()];
  const auto probability = [&](std::int32_t id) {
    return std::exp((logits[id] - largest) / row.temperature);
  };
  ids.erase(std::remove_if(ids.begin(), ids.end(),
                           [&](std::int32_t id) { return probability(id) < row.min_p; }),
            ids.end());
  if (row.top_k > 0 && row.top_k < static_cast<std::int32_t>(ids.size())) {
    ids.resize(row.top_k);
  }
  double total = 0.0;
  for (const std::int32_t id : ids) {
    total += probability(id);
  }
  double sum = 0.0;
  for (std::size_t i = 0; i < ids.size() && row.top_p < 1.0F; ++i) {
    sum += probability(ids[i]) / total;
    if (sum >= row.top_p) {
      ids.resize(i + 1);
    }
  }
  total = 0.0;
  for (const std::int32_t id : ids) {
    total += probability(id);
  }
  std::sort(ids.begin(), ids.end());
  const double uniform = CounterUniform(row.seed, static_cast<std::uint64_t>(row.position));
  sum = 0.0;
  for (const std::int32_t id : ids) {
    sum += probability(id) / total;
    if (sum > uniform) {
      return id;
    }
  }
  return ids.back();
}

inline double LogProbability(const std::vector<float>& logits, std::int32_t id) {
  double sum = 0.0;
  for (const float logit : logits) {
    sum += std::exp(static_cast<double>(logit) - logits[id]);
  }
  return -std::log(sum);
}

}  // namespace dsa::testing::sample
