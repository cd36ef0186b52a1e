// Laws of a load test's numbers, by hand-made stamps.
#include "server/bench/serve_metrics.h"

#include <catch2/catch.hpp>

namespace dsa::bench {
namespace {

constexpr std::int64_t kMs = 1'000'000;

// Starts at `start_ms`; one token a chunk.
RequestRecord Answered(std::int64_t start_ms, const std::vector<std::int64_t>& chunks_ms,
                       std::int64_t end_ms) {
  RequestRecord record;
  record.start_ns = start_ms * kMs;
  for (const std::int64_t chunk_ms : chunks_ms) {
    record.chunk_ns.push_back(chunk_ms * kMs);
  }
  record.end_ns = end_ms * kMs;
  record.input_tokens = 7;
  record.output_tokens = static_cast<std::int64_t>(chunks_ms.size());
  return record;
}

}  // namespace

TEST_CASE("percentiles interpolate between ranks, the deviation is a sample's", "[bench]") {
  // numpy 1.26: percentile([4, 1, 3, 2, 10], [1, 50, 90, 99]) and std(ddof=1).
  const Distribution values = Describe({4, 1, 3, 2, 10});
  CHECK(values.count == 5);
  CHECK(values.average == Approx(4.0));
  CHECK(values.sum == Approx(20.0));
  CHECK(values.minimum == 1.0);
  CHECK(values.maximum == 10.0);
  CHECK(values.Percentile(1) == Approx(1.04));
  CHECK(values.Percentile(50) == Approx(3.0));
  CHECK(values.Percentile(90) == Approx(7.6));
  CHECK(values.Percentile(99) == Approx(9.76));
  CHECK(values.deviation == Approx(3.5355339059));
  CHECK(Describe({5}).deviation == 0.0);
  CHECK(Describe({5}).Percentile(99) == 5.0);
  CHECK(Describe({}).count == 0);
}

TEST_CASE("a request's times are from its start, per token after the first", "[bench]") {
  RequestRecord record = Answered(100, {130, 140, 180}, 185);
  record.output_tokens = 6;  // the last message brought four tokens
  const RequestMetrics metrics = MeasureRequest(record);
  CHECK(metrics.time_to_first_token_ms == Approx(30));
  CHECK(metrics.inter_token_latency_ms == Approx(10));  // 50 ms for 5 tokens
  CHECK(metrics.request_latency_ms == Approx(85));
  CHECK(MeasureRequest(Answered(0, {5}, 6)).inter_token_latency_ms == 0);
}

TEST_CASE("a summary counts answered requests, failed ones apart", "[bench]") {
  LoadRun run;
  run.records = {Answered(0, {10, 20, 30}, 31), Answered(0, {50, 80, 110}, 112)};
  RequestRecord failed = Answered(5, {6}, 500);
  failed.error_code = "UNAVAILABLE";
  run.records.push_back(failed);
  run.duration_ns = 500 * kMs;
  run.client_cpu_s = 0.1;
  run.messages = 50;
  const auto limits = ParseGoodput("time_to_first_token:50,inter_token_latency:29.5");
  REQUIRE(limits.ok());
  const ServeSummary summary = Summarize(run, limits.value());
  CHECK(summary.Value("request_count") == 2);
  CHECK(summary.Value("error_request_count") == 1);
  CHECK(summary.Value("request_throughput") == Approx(4));
  CHECK(summary.Value("output_token_throughput") == Approx(12));
  CHECK(summary.Value("total_token_throughput") == Approx(40));
  CHECK(summary.Value("benchmark_duration") == Approx(0.5));
  CHECK(summary.Value("client_cpu_cores") == Approx(0.2));
  CHECK(summary.Value("client_cpu_per_message") == Approx(2000));
  CHECK(summary.Find("time_to_first_token").average == Approx(30));
  CHECK(summary.Find("inter_token_latency").maximum == Approx(30));
  CHECK(summary.Find("inter_chunk_latency").count == 4);
  CHECK(summary.Find("output_token_throughput_per_user").maximum == Approx(100));
  // The second one is within its first limit, to the equal, and beyond its second.
  CHECK(summary.Value("good_request_count") == 1);
  CHECK(summary.Value("goodput") == Approx(2));
}

TEST_CASE("goodput limits name a metric and a positive number", "[bench]") {
  CHECK(ParseGoodput("").value().empty());
  for (const char* text :
       {"ttft:5", "time_to_first_token", "time_to_first_token:", "time_to_first_token:0",
        "time_to_first_token:-1", "time_to_first_token:nan", "time_to_first_token:5ms",
        "request_latency:5,,request_latency:6"}) {
    CAPTURE(text);
    const auto limits = ParseGoodput(text);
    REQUIRE_FALSE(limits.ok());
    CHECK(limits.error().message.find("is not NAME:MILLISECONDS") != std::string::npos);
  }
}

}  // namespace dsa::bench
