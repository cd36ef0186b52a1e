#include "server/bench/serve_report.h"

#include "common/json.h"
#include "server/bench/output_folder.h"
#include "server/bench/units.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <map>

#include <fmt/chrono.h>
#include <fmt/core.h>

namespace dsa::bench {
namespace {

Json ValueWithUnit(const Json& value, const char* unit) {
  return {{"value", value}, {"unit", unit}};
}

Json MetricsOf(const RequestRecord& record) {
  if (!record.ok()) {
    return {{"error_isl", ValueWithUnit(record.input_tokens, "tokens")}};
  }
  const RequestMetrics metrics = MeasureRequest(record);
  Json chunks = Json::array();
  for (std::size_t i = 1; i < record.chunk_ns.size(); ++i) {
    chunks.push_back(static_cast<double>(record.chunk_ns[i] - record.chunk_ns[i - 1]) / kNsPerMs);
  }
  Json json = {
      {"input_sequence_length", ValueWithUnit(record.input_tokens, "tokens")},
      {"time_to_first_token", ValueWithUnit(metrics.time_to_first_token_ms, "ms")},
      {"request_latency", ValueWithUnit(metrics.request_latency_ms, "ms")},
      {"output_sequence_length", ValueWithUnit(record.output_tokens, "tokens")},
      {"cached_prompt_tokens", ValueWithUnit(record.cached_tokens, "tokens")},
      {"inter_chunk_latency", ValueWithUnit(chunks, "ms")},
  };
  if (metrics.inter_token_latency_ms > 0) {
    json["inter_token_latency"] = ValueWithUnit(metrics.inter_token_latency_ms, "ms");
    json["output_token_throughput_per_user"] =
        ValueWithUnit(kMsPerSecond / metrics.inter_token_latency_ms, "tokens/sec/user");
  }
  return json;
}

Json RecordOf(const RequestRecord& record, std::int64_t start_unix_ns) {
  const auto unix_ns = [start_unix_ns](std::int64_t ns) { return start_unix_ns + ns; };
  const Json acknowledged =
      record.chunk_ns.empty() ? Json() : Json(unix_ns(record.chunk_ns.front()));
  const Json cancelled = record.cancelled ? Json(unix_ns(record.end_ns)) : Json();
  Json error;
  if (!record.ok()) {
    error = {{"code", record.error_code},
             {"type", record.error_code},
             {"message", record.error_message}};
  }
  return {{"metadata",
           {{"session_num", record.index},
            {"x_request_id", record.request_id},
            {"turn_index", 0},
            {"request_start_ns", unix_ns(record.start_ns)},
            {"request_ack_ns", acknowledged},
            {"request_end_ns", unix_ns(record.end_ns)},
            {"worker_id", "dsa bench serve"},
            {"benchmark_phase", "profiling"},
            {"was_cancelled", record.cancelled},
            {"cancellation_time_ns", cancelled}}},
          {"metrics", MetricsOf(record)},
          {"error", error}};
}

Json StatisticsOf(const NamedDistribution& metric) {
  const Distribution& values = metric.values;
  Json json = {{"unit", metric.unit}, {"avg", values.average}};
  for (std::size_t i = 0; i < kPercentiles.size(); ++i) {
    json[fmt::format("p{}", kPercentiles[i])] = values.percentiles[i];
  }
  json["min"] = values.minimum;
  json["max"] = values.maximum;
  json["std"] = values.deviation;
  json["count"] = values.count;
  json["sum"] = values.sum;
  return json;
}

// InferenceX's row: seconds, throughput per GPU, interactivity as the reciprocal of the time per
// output token.
Json InferenceXRow(const ServeContext& context, const ServeResult& result) {
  const ServeSummary& summary = result.summary;
  const auto gpus = static_cast<double>(context.gpus);
  const double total = summary.Value("total_token_throughput") / gpus;
  const double output = summary.Value("output_token_throughput") / gpus;
  Json row = {{"hw", context.hardware},
              {"conc", result.point.concurrency},
              {"model", context.server.model},
              {"framework", "dsa"},
              {"precision", context.precision},
              {"spec_decoding", "none"},
              {"disagg", false},
              {"isl", context.input_tokens},
              {"osl", context.output_tokens},
              {"tp", context.gpus},
              {"pp", 1},
              {"ep", 1},
              {"dp_attention", false},
              {"tput_per_gpu", total},
              {"output_tput_per_gpu", output},
              {"input_tput_per_gpu", total - output}};
  const std::vector<std::pair<const char*, const char*>> metrics = {{"ttft", "time_to_first_token"},
                                                                    {"tpot", "inter_token_latency"},
                                                                    {"itl", "inter_chunk_latency"},
                                                                    {"e2el", "request_latency"}};
  for (const auto& [short_name, name] : metrics) {
    const Distribution& values = summary.Find(name);
    const std::vector<std::pair<const char*, double>> statistics = {
        {"mean", values.average},       {"median", values.Percentile(50)},
        {"std", values.deviation},      {"p90", values.Percentile(90)},
        {"p95", values.Percentile(95)}, {"p99", values.Percentile(99)}};
    for (const auto& [statistic, value_ms] : statistics) {
      row[fmt::format("{}_{}", statistic, short_name)] = value_ms / kMsPerSecond;
      if (std::string_view(short_name) == "tpot" && value_ms > 0) {
        row[fmt::format("{}_intvty", statistic)] = kMsPerSecond / value_ms;
      }
    }
  }
  return row;
}

Json ErrorSummary(const LoadRun& run) {
  std::map<std::pair<std::string, std::string>, std::int64_t> counts;
  for (const RequestRecord& record : run.records) {
    if (!record.ok()) {
      ++counts[{record.error_code, record.error_message}];
    }
  }
  Json errors = Json::array();
  for (const auto& [error, count] : counts) {
    errors.push_back(
        {{"error_details", {{"code", error.first}, {"message", error.second}}}, {"count", count}});
  }
  return errors;
}

std::string IsoTime(std::int64_t unix_ns) {
  return fmt::format(
      "{:%Y-%m-%dT%H:%M:%SZ}",
      fmt::gmtime(static_cast<std::time_t>(static_cast<double>(unix_ns) / kNsPerSecond)));
}

Json SummaryOf(const ServeContext& context, const ServeResult& result) {
  Json json = {{"schema_version", "1.0"}, {"load", result.point.Name()}};
  for (const NamedDistribution& metric : result.summary.distributions) {
    if (metric.values.count > 0) {
      json[metric.name] = StatisticsOf(metric);
    }
  }
  for (const NamedValue& value : result.summary.values) {
    json[value.name] = {{"unit", value.unit}, {"avg", value.value}};
  }
  Json limits = Json::object();
  for (const GoodputLimit& limit : context.limits) {
    limits[limit.metric] = limit.limit_ms;
  }
  Json options = Json::object();
  for (const auto& [name, value] : context.options) {
    options[name] = value;
  }
  json["goodput_limits_ms"] = limits;
  json["inferencex"] = InferenceXRow(context, result);
  json["input_config"] = options;
  json["server"] = {{"address", context.address},
                    {"model", context.server.model},
                    {"version", context.server.version},
                    {"device", context.server.device},
                    {"configuration", context.server.configuration_json}};
  json["client_version"] = context.client_version;
  json["skipped_request_count"] = context.skipped;
  json["was_cancelled"] = result.run.interrupted;
  json["error_summary"] = ErrorSummary(result.run);
  json["start_time"] = IsoTime(result.run.start_unix_ns);
  json["end_time"] = IsoTime(result.run.start_unix_ns + result.run.duration_ns);
  return json;
}

}  // namespace

Status WriteProfile(const std::string& folder, const ServeContext& /*context*/,
                    const ServeResult& result) {
  std::vector<const RequestRecord*> records;
  for (const RequestRecord& record : result.run.records) {
    records.push_back(&record);
  }
  std::sort(records.begin(), records.end(),
            [](const auto* a, const auto* b) { return a->index < b->index; });
  std::string text;
  for (const RequestRecord* record : records) {
    text += RecordOf(*record, result.run.start_unix_ns).dump() + "\n";
  }
  return WriteTextFile(folder, "profile_export.jsonl", text);
}

Status WriteSummary(const std::string& folder, const ServeContext& context,
                    const ServeResult& result) {
  return WriteTextFile(folder, "summary.json", SummaryOf(context, result).dump(2) + "\n");
}

Status WriteSweepSummary(const std::string& folder, const ServeContext& context,
                         const std::vector<ServeResult>& results) {
  Json runs = Json::array();
  for (const ServeResult& result : results) {
    runs.push_back(SummaryOf(context, result));
  }
  return WriteTextFile(folder, "summary.json", Json({{"sweep", runs}}).dump(2) + "\n");
}

Status WriteSummaryCsv(const std::string& folder, const std::vector<ServeResult>& results) {
  std::string text = "load,metric,unit,avg,min,max,std";
  for (const int percent : kPercentiles) {
    text += fmt::format(",p{}", percent);
  }
  text += ",count\n";
  for (const ServeResult& result : results) {
    const std::string name = result.point.Name();
    for (const NamedDistribution& metric : result.summary.distributions) {
      const Distribution& values = metric.values;
      text += fmt::format("{},{},{},{},{},{},{}", name, metric.name, metric.unit, values.average,
                          values.minimum, values.maximum, values.deviation);
      for (const double percentile : values.percentiles) {
        text += fmt::format(",{}", percentile);
      }
      text += fmt::format(",{}\n", values.count);
    }
    for (const NamedValue& value : result.summary.values) {
      text += fmt::format("{},{},{},{}{}\n", name, value.name, value.unit, value.value,
                          std::string(4 + kPercentiles.size(), ','));
    }
  }
  return WriteTextFile(folder, "summary.csv", text);
}

std::string ToTable(const ServeResult& result) {
  std::string text =
      fmt::format("\n{}\n{:<40}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}\n", result.point.Name(), "",
                  "mean", "p50", "p90", "p95", "p99", "max");
  for (const NamedDistribution& metric : result.summary.distributions) {
    const Distribution& values = metric.values;
    text += fmt::format("{:<40}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}\n",
                        fmt::format("{} ({})", metric.name, metric.unit), values.average,
                        values.Percentile(50), values.Percentile(90), values.Percentile(95),
                        values.Percentile(99), values.maximum);
  }
  for (const NamedValue& value : result.summary.values) {
    text += fmt::format("{:<40}{:>10.2f}\n", fmt::format("{} ({})", value.name, value.unit),
                        value.value);
  }
  return text;
}

}  // namespace dsa::bench
