#include "server/bench/serve_metrics.h"

#include "server/bench/units.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <system_error>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::array<std::string_view, 3> kLimitable = {"time_to_first_token",
                                                        "inter_token_latency", "request_latency"};

double LimitedValue(const RequestMetrics& metrics, std::string_view name) {
  if (name == kLimitable[0]) {
    return metrics.time_to_first_token_ms;
  }
  return name == kLimitable[1] ? metrics.inter_token_latency_ms : metrics.request_latency_ms;
}

Result<GoodputLimit> ParseLimit(std::string_view text) {
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::string_view name = text.substr(0, colon);
  const std::string_view number = colon < text.size() ? text.substr(colon + 1) : "";
  double limit_ms = 0;
  const auto parsed = std::from_chars(number.data(), number.data() + number.size(), limit_ms);
  const bool named = std::find(kLimitable.begin(), kLimitable.end(), name) != kLimitable.end();
  const bool positive = parsed.ec == std::errc() && parsed.ptr == number.data() + number.size() &&
                        limit_ms > 0 && limit_ms < 1e12;
  if (!named || !positive) {
    return InvalidArgument(
        fmt::format("goodput: \"{}\" is not NAME:MILLISECONDS, a positive number of one of "
                    "time_to_first_token, inter_token_latency, request_latency",
                    text));
  }
  return GoodputLimit{.metric = std::string(name), .limit_ms = limit_ms};
}

// The samples of all answered requests.
struct Samples {
  std::vector<double> time_to_first_token;
  std::vector<double> request_latency;
  std::vector<double> inter_token_latency;
  std::vector<double> inter_chunk_latency;
  std::vector<double> output_rate_per_user;
  std::vector<double> input_length;
  std::vector<double> output_length;
  std::vector<double> cached_tokens;
  std::vector<double> start_delay;
  std::int64_t good = 0;
  std::int64_t failed = 0;
};

Samples Collect(const LoadRun& run, const std::vector<GoodputLimit>& limits) {
  Samples samples;
  for (const RequestRecord& record : run.records) {
    if (!record.ok()) {
      ++samples.failed;
      continue;
    }
    const RequestMetrics metrics = MeasureRequest(record);
    samples.time_to_first_token.push_back(metrics.time_to_first_token_ms);
    samples.request_latency.push_back(metrics.request_latency_ms);
    if (metrics.inter_token_latency_ms > 0) {
      samples.inter_token_latency.push_back(metrics.inter_token_latency_ms);
      samples.output_rate_per_user.push_back(kMsPerSecond / metrics.inter_token_latency_ms);
    }
    for (std::size_t i = 1; i < record.chunk_ns.size(); ++i) {
      samples.inter_chunk_latency.push_back(
          static_cast<double>(record.chunk_ns[i] - record.chunk_ns[i - 1]) / kNsPerMs);
    }
    samples.input_length.push_back(static_cast<double>(record.input_tokens));
    samples.output_length.push_back(static_cast<double>(record.output_tokens));
    samples.cached_tokens.push_back(static_cast<double>(record.cached_tokens));
    samples.start_delay.push_back(record.planned_ns == 0
                                      ? 0
                                      : static_cast<double>(record.start_ns - record.planned_ns) /
                                            kNsPerMs);
    samples.good += IsGood(metrics, limits) ? 1 : 0;
  }
  return samples;
}

}  // namespace

Result<std::vector<GoodputLimit>> ParseGoodput(std::string_view text) {
  std::vector<GoodputLimit> limits;
  while (!text.empty()) {
    const std::size_t comma = std::min(text.find(','), text.size());
    DSA_ASSIGN_OR_RETURN(GoodputLimit limit, ParseLimit(text.substr(0, comma)));
    limits.push_back(std::move(limit));
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return limits;
}

RequestMetrics MeasureRequest(const RequestRecord& record) {
  DSA_CHECK(!record.chunk_ns.empty(), "MeasureRequest: request {} has no token", record.index);
  const double first_ns = static_cast<double>(record.chunk_ns.front() - record.start_ns);
  const double rest_ns = static_cast<double>(record.chunk_ns.back() - record.chunk_ns.front());
  const std::int64_t later_tokens = record.output_tokens - 1;
  return {.time_to_first_token_ms = first_ns / kNsPerMs,
          .request_latency_ms = static_cast<double>(record.end_ns - record.start_ns) / kNsPerMs,
          .inter_token_latency_ms =
              later_tokens > 0 ? rest_ns / kNsPerMs / static_cast<double>(later_tokens) : 0,
          .output_tokens = record.output_tokens};
}

bool IsGood(const RequestMetrics& metrics, const std::vector<GoodputLimit>& limits) {
  return std::all_of(limits.begin(), limits.end(), [&](const GoodputLimit& limit) {
    return LimitedValue(metrics, limit.metric) <= limit.limit_ms;
  });
}

const Distribution& ServeSummary::Find(std::string_view name) const {
  const auto found = std::find_if(distributions.begin(), distributions.end(),
                                  [&](const auto& one) { return one.name == name; });
  DSA_CHECK(found != distributions.end(), "ServeSummary: no distribution {}", name);
  return found->values;
}

double ServeSummary::Value(std::string_view name) const {
  const auto found =
      std::find_if(values.begin(), values.end(), [&](const auto& one) { return one.name == name; });
  DSA_CHECK(found != values.end(), "ServeSummary: no value {}", name);
  return found->value;
}

ServeSummary Summarize(const LoadRun& run, const std::vector<GoodputLimit>& limits) {
  Samples samples = Collect(run, limits);
  const double seconds = static_cast<double>(run.duration_ns) / kNsPerSecond;
  const auto per_second = [seconds](double amount) { return seconds > 0 ? amount / seconds : 0; };
  ServeSummary summary;
  const auto add = [&summary](const char* name, const char* unit, std::vector<double>& values) {
    summary.distributions.push_back({name, unit, Describe(std::move(values))});
  };
  add("time_to_first_token", "ms", samples.time_to_first_token);
  add("inter_token_latency", "ms", samples.inter_token_latency);
  add("inter_chunk_latency", "ms", samples.inter_chunk_latency);
  add("request_latency", "ms", samples.request_latency);
  add("output_token_throughput_per_user", "tokens/sec/user", samples.output_rate_per_user);
  add("input_sequence_length", "tokens", samples.input_length);
  add("output_sequence_length", "tokens", samples.output_length);
  add("cached_prompt_tokens", "tokens", samples.cached_tokens);
  add("request_start_delay", "ms", samples.start_delay);
  const double inputs = summary.Find("input_sequence_length").sum;
  const double outputs = summary.Find("output_sequence_length").sum;
  const auto answered = static_cast<double>(summary.Find("request_latency").count);
  summary.values = {
      {"request_throughput", "requests/sec", per_second(answered)},
      {"output_token_throughput", "tokens/sec", per_second(outputs)},
      {"total_token_throughput", "tokens/sec", per_second(inputs + outputs)},
      {"request_count", "requests", answered},
      {"error_request_count", "requests", static_cast<double>(samples.failed)},
      {"benchmark_duration", "sec", seconds},
      {"client_cpu_cores", "cores", per_second(run.client_cpu_s)},
      {"client_cpu_per_message", "us",
       run.messages > 0 ? run.client_cpu_s * 1e6 / static_cast<double>(run.messages) : 0},
  };
  if (!limits.empty()) {
    const auto good = static_cast<double>(samples.good);
    summary.values.push_back({"good_request_count", "requests", good});
    summary.values.push_back({"goodput", "requests/sec", per_second(good)});
  }
  return summary;
}

}  // namespace dsa::bench
