#include "server/bench/statistics.h"

#include "common/check.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace dsa::bench {

double PercentileOf(std::span<const double> sorted, double percent) {
  DSA_CHECK(!sorted.empty(), "PercentileOf: no values");
  const double rank = percent / 100.0 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(rank);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (rank - static_cast<double>(below));
}

double Distribution::Percentile(int percent) const {
  const auto* const place = std::find(kPercentiles.begin(), kPercentiles.end(), percent);
  DSA_CHECK(place != kPercentiles.end(), "Distribution: percentile {} is not kept", percent);
  return percentiles[static_cast<std::size_t>(place - kPercentiles.begin())];
}

Distribution Describe(std::vector<double> values) {
  Distribution result;
  if (values.empty()) {
    return result;
  }
  std::sort(values.begin(), values.end());
  result.count = static_cast<std::int64_t>(values.size());
  result.sum = std::accumulate(values.begin(), values.end(), 0.0);
  result.average = result.sum / static_cast<double>(result.count);
  result.minimum = values.front();
  result.maximum = values.back();
  double squares = 0;
  for (const double value : values) {
    squares += (value - result.average) * (value - result.average);
  }
  if (result.count > 1) {
    result.deviation = std::sqrt(squares / static_cast<double>(result.count - 1));
  }
  for (std::size_t i = 0; i < kPercentiles.size(); ++i) {
    result.percentiles[i] = PercentileOf(values, kPercentiles[i]);
  }
  return result;
}

}  // namespace dsa::bench
