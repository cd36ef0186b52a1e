// From the stamps of a load run to the numbers that people compare, under aiperf's names.  Pure.
//
// A request that failed counts in error_request_count only.  Throughputs are over the time from the
// run's start to its last request's end; warm-up requests are another run and in none of them.
#pragma once

#include "common/status.h"
#include "server/bench/load_generator.h"
#include "server/bench/statistics.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsa::bench {

// A request is good where each of these is at most its limit.
struct GoodputLimit {
  std::string metric;  // time_to_first_token, inter_token_latency or request_latency
  double limit_ms;     // > 0
};

// "time_to_first_token:500,inter_token_latency:50"; "" is no limit.
Result<std::vector<GoodputLimit>> ParseGoodput(std::string_view text);

// What one answered request measured.
struct RequestMetrics {
  double time_to_first_token_ms;
  double request_latency_ms;      // until its status
  double inter_token_latency_ms;  // (last token - first token) / (tokens - 1); 0 for one token
  std::int64_t output_tokens;
};
RequestMetrics MeasureRequest(const RequestRecord& record);

bool IsGood(const RequestMetrics& metrics, const std::vector<GoodputLimit>& limits);

struct NamedDistribution {
  std::string name;  // "time_to_first_token"
  std::string unit;  // "ms"
  Distribution values;
};

struct NamedValue {
  std::string name;  // "request_throughput"
  std::string unit;  // "requests/sec"
  double value;
};

struct ServeSummary {
  std::vector<NamedDistribution> distributions;
  std::vector<NamedValue> values;

  // Both CHECK-fail where there is no such name.
  const Distribution& Find(std::string_view name) const;
  double Value(std::string_view name) const;
};

ServeSummary Summarize(const LoadRun& run, const std::vector<GoodputLimit>& limits);

}  // namespace dsa::bench
