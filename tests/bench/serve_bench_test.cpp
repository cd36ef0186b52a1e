// `dsa bench serve`, the real binary, against the real server over an executor without a model.
#include "common/json.h"
#include "tests/api/test_server.h"
#include "tests/e2e/process.h"
#include "tests/temporary_folder.h"

#include <algorithm>
#include <csignal>
#include <fstream>
#include <iterator>
#include <sstream>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

using testing::Arguments;
using testing::Ended;
using testing::TemporaryFolder;
using testing::TestServer;

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<Json> ReadLines(const std::string& path) {
  std::vector<Json> lines;
  std::istringstream stream(Read(path));
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(Json::parse(line));
  }
  return lines;
}

Arguments Command(TestServer& server, const Arguments& more) {
  Arguments arguments = {"bench", "serve", "--address",
                         fmt::format("127.0.0.1:{}", server.server().port())};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

// 256 sequences at once, of 1K tokens at most.
testing::TestServerOptions Wide() {
  testing::TestServerOptions options;
  options.engine.scheduler.sequences_max = 256;
  options.engine.scheduler.waiting_max = 512;
  options.engine.scheduler.context_tokens_max = 1024;
  options.engine.blocks = 256 * 16;
  return options;
}

}  // namespace

TEST_CASE("a load test counts every token once and no warm-up", "[bench][serve]") {
  TestServer server;
  server.steps().SetDuration(std::chrono::milliseconds(2));
  const TemporaryFolder folder;
  const std::string output = folder / "deep/out";
  const Ended ended = testing::RunDsa(
      Command(server, {"--model", "m", "--concurrency", "4", "--requests", "12", "--input-len",
                       "130", "--output-len", "20", "--warmup-requests", "3", "--goodput",
                       "request_latency:60000", "--gpus", "2", "--output", output}),
      "");
  CAPTURE(ended.err, ended.out);
  REQUIRE(ended.exit_code == 0);
  CHECK(server.engine().Load().requests_finished == 15);
  const Json summary = Json::parse(Read(output + "/summary.json"));
  CHECK(summary["request_count"]["avg"] == 12);
  CHECK(summary["error_request_count"]["avg"] == 0);
  CHECK(summary["good_request_count"]["avg"] == 12);
  CHECK(summary["output_sequence_length"]["sum"] == 240);
  CHECK(summary["input_sequence_length"]["avg"] == 130);
  CHECK(summary["cached_prompt_tokens"]["sum"] == 0);
  CHECK(summary["was_cancelled"] == false);
  // Steps take 2 ms and more, and every sequence that runs gets a token in each.  On a busy machine
  // tokens may reach the client in one go, but no request ends before its steps have run.
  CHECK(summary["request_latency"]["min"].get<double>() > 20 * 2.0);
  // The last token comes before the status.  By how much is the machine's affair: the numbers
  // themselves are held to stamps made by hand in serve_metrics_test.cpp.
  CHECK(summary["inter_token_latency"]["avg"].get<double>() * 19 +
            summary["time_to_first_token"]["avg"].get<double>() <=
        summary["request_latency"]["avg"].get<double>() + 0.001);
  CHECK(summary["time_to_first_token"]["min"].get<double>() > 1.5);
  const double seconds = summary["benchmark_duration"]["avg"];
  CHECK(summary["output_token_throughput"]["avg"].get<double>() == Approx(240 / seconds));
  const Json& row = summary["inferencex"];
  CHECK(row["conc"] == 4);
  CHECK(row["isl"] == 130);
  CHECK(row["osl"] == 20);
  CHECK(row["tput_per_gpu"].get<double>() == Approx(150 * 12 / seconds / 2));
  CHECK(row["median_intvty"].get<double>() == Approx(1 / row["median_tpot"].get<double>()));
  CHECK(row["p99_ttft"].get<double>() ==
        Approx(summary["time_to_first_token"]["p99"].get<double>() / 1000));
  const auto records = ReadLines(output + "/profile_export.jsonl");
  REQUIRE(records.size() == 12);
  for (std::size_t i = 0; i < records.size(); ++i) {
    CHECK(records[i]["metadata"]["session_num"] == i);
    CHECK(records[i]["error"].is_null());
    const Json& metadata = records[i]["metadata"];
    const double span_ms =
        (metadata["request_end_ns"].get<double>() - metadata["request_start_ns"].get<double>()) /
        1e6;
    CHECK(records[i]["metrics"]["request_latency"]["value"].get<double>() ==
          Approx(span_ms).margin(0.01));
  }
  CHECK(Read(output + "/summary.csv").find("concurrency_4,request_count,requests,12") !=
        std::string::npos);
  // Nothing is overwritten.
  const Ended again =
      testing::RunDsa(Command(server, {"--concurrency", "1", "--requests", "1", "--input-len", "1",
                                       "--output-len", "1", "--output", output}),
                      "");
  CHECK(again.exit_code == 2);
  CHECK(again.err.find("holds profile_export.jsonl already") != std::string::npos);
}

TEST_CASE("hash ids of a trace are found in the prefix cache, runs find nothing of each other",
          "[bench][serve]") {
  TestServer server;
  const TemporaryFolder folder;
  std::ofstream(folder / "trace.jsonl")
      << R"({"timestamp": 0, "input_length": 1100, "output_length": 2, "hash_ids": [4, 5, 6]})"
      << "\n"
      << R"({"timestamp": 9, "input_length": 1300, "output_length": 2, "hash_ids": [4, 5, 7]})";
  for (const char* name : {"first", "second"}) {
    const Ended ended = testing::RunDsa(
        Command(server, {"--dataset", "mooncake", "--dataset-path", folder / "trace.jsonl",
                         "--concurrency", "1", "--output", folder / name}),
        "");
    CAPTURE(ended.err);
    REQUIRE(ended.exit_code == 0);
    const auto records = ReadLines(folder / name + "/profile_export.jsonl");
    REQUIRE(records.size() == 2);
    CHECK(records[0]["metrics"]["cached_prompt_tokens"]["value"] == 0);
    CHECK(records[1]["metrics"]["cached_prompt_tokens"]["value"] == 1024);
  }
}

TEST_CASE("a sweep has a folder a point; failed requests are counted and told", "[bench][serve]") {
  TestServer server;
  const TemporaryFolder folder;
  const Ended ended = testing::RunDsa(
      Command(server, {"--request-rate", "200,400", "--arrival", "constant", "--requests", "10",
                       "--input-len", "5", "--output-len", "3", "--output", folder / "sweep"}),
      "");
  CAPTURE(ended.err);
  REQUIRE(ended.exit_code == 0);
  const Json summary = Json::parse(Read(folder / "sweep/summary.json"));
  REQUIRE(summary["sweep"].size() == 2);
  CHECK(summary["sweep"][1]["load"] == "request_rate_400");
  CHECK(ReadLines(folder / "sweep/request_rate_200/profile_export.jsonl").size() == 10);
  server.steps().SetDuration(std::chrono::milliseconds(30));
  const Ended late =
      testing::RunDsa(Command(server, {"--concurrency", "2", "--requests", "4", "--input-len", "5",
                                       "--output-len", "100", "--request-timeout", "0.2",
                                       "--warmup-requests", "0", "--output", folder / "late"}),
                      "");
  CHECK(late.exit_code == 1);
  CHECK(late.err.find("error: 4 requests failed, the first with DEADLINE_EXCEEDED") !=
        std::string::npos);
  const Json failed = Json::parse(Read(folder / "late/summary.json"));
  CHECK(failed["error_request_count"]["avg"] == 4);
  CHECK(failed["request_count"]["avg"] == 0);
}

TEST_CASE("Ctrl-C writes what was measured", "[bench][serve]") {
  TestServer server;
  // Prompts are drawn before the first request: of a million, a busy machine does little else.
  // These would take two minutes.
  server.steps().SetDuration(std::chrono::milliseconds(1));
  const TemporaryFolder folder;
  testing::Process process(
      Command(server, {"--concurrency", "2", "--requests", "5000", "--input-len", "5",
                       "--output-len", "50", "--warmup-requests", "0", "--output", folder / "out"}),
      testing::Streams::kPipes);
  REQUIRE(testing::Eventually([&] { return server.engine().Load().requests_finished >= 10; }));
  server.steps().Hold();  // two requests cannot end by themselves
  process.Signal(SIGINT);
  const Ended ended = process.Wait();
  CAPTURE(ended.err);
  CHECK(ended.exit_code == 130);
  const Json summary = Json::parse(Read(folder / "out/summary.json"));
  CHECK(summary["was_cancelled"] == true);
  CHECK(summary["request_count"]["avg"].get<double>() >= 8);
  CHECK(summary["error_request_count"]["avg"].get<double>() <= 2);
}

TEST_CASE("what cannot be measured is told in one line", "[bench][serve]") {
  TestServer server;
  const TemporaryFolder folder;
  struct Case {
    Arguments arguments;
    const char* message;
  };
  const Arguments lengths = {"--requests", "1", "--input-len", "5", "--output-len", "1"};
  const std::vector<Case> cases = {
      {{"--concurrency", "1", "--model", "x"}, "model: \"x\" is not served by 127.0.0.1:"},
      {{"--concurrency", "0"}, "--concurrency"},
      {{"--concurrency", "1", "--request-rate", "nan"}, "--request-rate"},
      {{}, "--concurrency, --request-rate or --trace-speed is required"},
      {{"--concurrency", "2,2"}, "--concurrency: 2 stands there twice"},
      {{"--request-rate", "1", "--trace-speed", "1"}, "give one of them"},
      {{"--concurrency", "1", "--dataset", "mooncake"}, "--dataset mooncake"},
      {{"--concurrency", "1", "--prefix-len", "5"}, "--prefix-len: 5 is not less"},
      {{"--concurrency", "1", "--goodput", "ttft:1"}, "goodput: \"ttft:1\""},
      {{"--concurrency", "1", "--bogus"}, "--bogus"},
  };
  for (const Case& one : cases) {
    Arguments arguments = Command(server, one.arguments);
    arguments.insert(arguments.end(), lengths.begin(), lengths.end());
    arguments.insert(arguments.end(), {"--output", folder / "out"});
    const Ended ended = testing::RunDsa(arguments, "");
    CAPTURE(one.message, ended.err);
    CHECK(ended.exit_code != 0);
    CHECK(ended.err.find(one.message) != std::string::npos);
    CHECK(std::count(ended.err.begin(), ended.err.end(), '\n') == 1);
  }
}

TEST_CASE("a server that is not there is told in one line", "[bench][serve]") {
  const TemporaryFolder folder;
  const Ended ended = testing::RunDsa(
      {"bench", "serve", "--address", "127.0.0.1:1", "--concurrency", "1", "--requests", "1",
       "--input-len", "5", "--output-len", "1", "--output", folder / "out"},
      "");
  CHECK(ended.exit_code == 1);
  CHECK(ended.err.find("error: address: 127.0.0.1:1: UNAVAILABLE: ") == 0);
  CHECK(std::count(ended.err.begin(), ended.err.end(), '\n') == 1);
}

// The client runs in a process of its own, so its processor time is nobody else's.
TEST_CASE("256 streams of 100 tokens a second take less than a core of the client",
          "[bench][serve]") {
  TestServer server(Wide());
  server.steps().SetDuration(std::chrono::milliseconds(10));
  const TemporaryFolder folder;
  const Ended ended =
      testing::RunDsa(Command(server, {"--concurrency", "256", "--requests", "256", "--input-len",
                                       "4", "--output-len", "200", "--output", folder / "out"}),
                      "");
  CAPTURE(ended.err);
  REQUIRE(ended.exit_code == 0);
  const Json summary = Json::parse(Read(folder / "out/summary.json"));
  CHECK(summary["output_sequence_length"]["sum"] == 256 * 200);
  const double us_per_message = summary["client_cpu_per_message"]["avg"];
  WARN("client: " << us_per_message << " us per message, " << summary["client_cpu_cores"]["avg"]
                  << " cores at " << summary["output_token_throughput"]["avg"] << " tokens/s");
#ifndef __SANITIZE_ADDRESS__
  // 256 * 100 messages a second, each on its own: a busy server merges some, which cost no less.
  CHECK(us_per_message * 25'600 < 1e6);
#endif
}

}  // namespace dsa
