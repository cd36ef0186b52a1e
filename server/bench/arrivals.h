// When the requests of a load test start.  Pure.
#pragma once

#include "common/status.h"
#include "server/bench/workload.h"

#include <cstdint>
#include <string>
#include <vector>

namespace dsa::bench {

enum class Arrival : std::uint8_t {
  kWhenOneEnds,  // a closed loop of `concurrency` requests
  kConstant,     // every 1 / requests_per_s seconds
  kPoisson,      // with exponential gaps of that mean
  kTrace,        // at the workload's own times, divided by trace_speed
};

// One point of a sweep.
struct LoadPoint {
  Arrival arrival = Arrival::kWhenOneEnds;
  std::int64_t concurrency = 0;  // running at once at most; 0: no limit, not with kWhenOneEnds
  double requests_per_s = 0;     // > 0 with kConstant and kPoisson
  double trace_speed = 1;        // > 0 with kTrace

  // "concurrency_8", "request_rate_2.5", "trace_speed_1": names a folder too.
  std::string Name() const;
};

// Microseconds since the start, one a request, ascending; all 0 for a closed loop.
// INVALID_ARGUMENT where a trace is asked for and a request has no time.
Result<std::vector<std::int64_t>> ArrivalTimesUs(const LoadPoint& point,
                                                 const std::vector<WorkloadRequest>& requests,
                                                 std::uint64_t seed);

}  // namespace dsa::bench
