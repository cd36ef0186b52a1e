#include "server/bench/arrivals.h"

#include "common/prng.h"
#include "server/bench/units.h"

#include <algorithm>
#include <cmath>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::uint64_t kArrivalKey = 0xA221;

// Exponential with mean 1.
double ExponentialGap(std::uint64_t seed, std::uint64_t index) {
  const std::uint64_t bits = CounterBits(CounterBits(seed, kArrivalKey), index) >> 11;
  return -std::log1p(-static_cast<double>(bits) * 0x1p-53);
}

}  // namespace

std::string LoadPoint::Name() const {
  switch (arrival) {
    case Arrival::kWhenOneEnds: return fmt::format("concurrency_{}", concurrency);
    case Arrival::kConstant:
    case Arrival::kPoisson: return fmt::format("request_rate_{}", requests_per_s);
    case Arrival::kTrace: return fmt::format("trace_speed_{}", trace_speed);
  }
  return "";
}

Result<std::vector<std::int64_t>> ArrivalTimesUs(const LoadPoint& point,
                                                 const std::vector<WorkloadRequest>& requests,
                                                 std::uint64_t seed) {
  std::vector<std::int64_t> times;
  double now_us = 0;
  for (const WorkloadRequest& request : requests) {
    const auto index = static_cast<std::uint64_t>(times.size());
    if (point.arrival == Arrival::kConstant) {
      now_us = static_cast<double>(index) * kUsPerSecond / point.requests_per_s;
    } else if (point.arrival == Arrival::kPoisson) {
      now_us += ExponentialGap(seed, index) * kUsPerSecond / point.requests_per_s;
    } else if (point.arrival == Arrival::kTrace) {
      if (!request.arrival_us) {
        return InvalidArgument(
            fmt::format("{}: timestamp: missing, and the trace is to be replayed", request.source));
      }
      now_us = static_cast<double>(*request.arrival_us) / point.trace_speed;
    }
    times.push_back(static_cast<std::int64_t>(now_us));
  }
  if (!std::is_sorted(times.begin(), times.end())) {
    return InvalidArgument("timestamp: the trace's times do not ascend");
  }
  return times;
}

}  // namespace dsa::bench
