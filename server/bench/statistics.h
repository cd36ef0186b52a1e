// Numbers about samples.  Pure functions, any thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace dsa::bench {

// The percentiles that reports hold, aiperf's.
inline constexpr std::array kPercentiles = {1, 5, 10, 25, 50, 75, 90, 95, 99};

struct Distribution {
  std::int64_t count = 0;  // 0: the rest is 0
  double average = 0;
  double deviation = 0;  // of a sample: divided by count - 1; 0 for one value
  double minimum = 0;
  double maximum = 0;
  double sum = 0;
  std::array<double, kPercentiles.size()> percentiles{};

  // `percent` is one of kPercentiles.
  double Percentile(int percent) const;
};

Distribution Describe(std::vector<double> values);

// Linear between the two nearest ranks, as numpy's default.  `sorted` ascends and is not empty;
// `percent` is in [0, 100].
double PercentileOf(std::span<const double> sorted, double percent);

}  // namespace dsa::bench
