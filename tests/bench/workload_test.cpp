// Laws of a load test's requests: lengths, prefixes, times, and what a bad file gets.
#include "server/bench/workload.h"

#include "server/bench/arrivals.h"
#include "tests/temporary_folder.h"

#include <algorithm>
#include <fstream>
#include <numeric>
#include <set>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::bench {
namespace {

using Ids = std::vector<std::int32_t>;

constexpr std::int64_t kVocabulary = 1000;

std::string Write(const testing::TemporaryFolder& folder, const std::string& text) {
  const std::string path = folder / "trace.jsonl";
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

FileWorkloadOptions Options(const std::string& path) {
  return {.path = path, .requests = 0, .block_tokens = 512, .seed = 3};
}

// One id a byte.
Result<Ids> Bytes(const std::string& text) {
  return Ids(text.begin(), text.end());
}

std::size_t SharedPrefix(const Ids& a, const Ids& b) {
  const auto end = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
  return static_cast<std::size_t>(end - a.begin());
}

RandomWorkloadOptions Random(std::uint64_t seed) {
  return {.requests = 200,
          .input_tokens = 100,
          .output_tokens = 40,
          .range_ratio = 0.25,
          .prefix_tokens = 20,
          .seed = seed};
}

}  // namespace

TEST_CASE("random prompts share their prefix alone and have lengths in the range", "[bench]") {
  const auto requests = MakeRandomWorkload(Random(1));
  REQUIRE(requests.size() == 200);
  std::set<std::int64_t> inputs;
  std::set<std::int64_t> outputs;
  std::set<Ids> prompts;
  for (const WorkloadRequest& request : requests) {
    const Ids prompt = MakePrompt(request, kVocabulary);
    CHECK(static_cast<std::int64_t>(prompt.size()) == request.input_tokens());
    CHECK(std::all_of(prompt.begin(), prompt.end(),
                      [](std::int32_t id) { return id >= 0 && id < kVocabulary; }));
    inputs.insert(request.input_tokens());
    outputs.insert(request.output_tokens);
    prompts.insert(prompt);
  }
  CHECK(*inputs.begin() == 80);  // 20 + 80 * 0.75
  CHECK(*inputs.rbegin() == 120);
  CHECK(*outputs.begin() == 30);
  CHECK(*outputs.rbegin() == 50);
  CHECK(prompts.size() == requests.size());
  const Ids first = MakePrompt(requests[0], kVocabulary);
  const std::size_t shared = SharedPrefix(first, MakePrompt(requests[1], kVocabulary));
  CHECK(shared >= 20);
  CHECK(shared < 24);
  CHECK(MakePrompt(MakeRandomWorkload(Random(1))[7], kVocabulary) ==
        MakePrompt(requests[7], kVocabulary));
  CHECK(MakePrompt(MakeRandomWorkload(Random(2))[7], kVocabulary) !=
        MakePrompt(requests[7], kVocabulary));
  const auto warm_up = MakeWarmUp(requests, 3, 1);
  REQUIRE(warm_up.size() == 3);
  CHECK(warm_up[2].input_tokens() == requests[2].input_tokens());
  CHECK(SharedPrefix(MakePrompt(warm_up[2], kVocabulary), MakePrompt(requests[2], kVocabulary)) <
        3);
}

TEST_CASE("equal hash ids of a trace are equal tokens, the last block of a line cut", "[bench]") {
  const testing::TemporaryFolder folder;
  const auto read = ReadMooncakeTrace(Options(Write(
      folder,
      "{\"timestamp\": 1000, \"input_length\": 1100, \"output_length\": 9, \"hash_ids\": [4, 5, "
      "6]}\n"
      "\n"
      "{\"timestamp\": 1250, \"input_length\": 1300, \"output_length\": 8, \"hash_ids\": [4, 5, "
      "6]}\r\n"
      "{\"timestamp\": 1250.5, \"input_length\": 1024, \"output_length\": 7, \"hash_ids\": [4, "
      "9]}")));
  REQUIRE(read.ok());
  const auto& requests = read.value();
  REQUIRE(requests.size() == 3);
  const Ids first = MakePrompt(requests[0], kVocabulary);
  const Ids second = MakePrompt(requests[1], kVocabulary);
  const Ids third = MakePrompt(requests[2], kVocabulary);
  CHECK(first.size() == 1100);
  CHECK(second.size() == 1300);
  CHECK(SharedPrefix(first, second) == 1100);
  CHECK(SharedPrefix(first, third) >= 512);
  CHECK(SharedPrefix(first, third) < 516);
  CHECK(requests[1].arrival_us == 250'000);
  CHECK(requests[2].arrival_us == 250'500);
  CHECK(requests[2].output_tokens == 7);
  CHECK(requests[2].source == "trace.jsonl: line 4");
}

TEST_CASE("a bad line of a trace is named with its number and reason", "[bench]") {
  struct Case {
    const char* line;
    const char* message;
  };
  const auto bad = GENERATE(values<Case>({
      {"{", "line 2: "},
      {"[]", "line 2: "},
      {R"({"input_length": 5, "output_length": 1})", "line 2: hash_ids: missing"},
      {R"({"output_length": 1, "hash_ids": [1]})", "line 2: input_length: missing"},
      {R"({"input_length": 0, "output_length": 1, "hash_ids": []})",
       "line 2: input_length: 0 is not an integer in [1, "},
      {R"({"input_length": 513, "output_length": 1, "hash_ids": [1]})",
       "line 2: hash_ids: 1 ids, but 513 tokens are 2 blocks of 512 tokens"},
      {R"({"input_length": 5, "output_length": 1, "hash_ids": [-1]})",
       "line 2: hash_ids: [0]: -1 is not a whole number"},
      {R"({"input_length": 5, "output_length": 1, "hash_ids": ["a"]})",
       "line 2: hash_ids: [0]: \"a\" is not a whole number"},
      {R"({"input_length": 5, "output_length": 1, "hash_ids": [1], "chat": 4})", "line 2: chat"},
      {R"({"timestamp": -4, "input_length": 5, "output_length": 1, "hash_ids": [1]})",
       "line 2: timestamp: -4 is not a number in [0, "},
  }));
  CAPTURE(bad.line);
  const testing::TemporaryFolder folder;
  const std::string good =
      "{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 1, \"hash_ids\": [1]}\n";
  const auto read = ReadMooncakeTrace(Options(Write(folder, good + bad.line)));
  REQUIRE_FALSE(read.ok());
  CAPTURE(read.error().message);
  CHECK(read.error().message.find(fmt::format("trace.jsonl: {}", bad.message)) == 0);
}

TEST_CASE("our own lines hold a text or ids, and nothing else", "[bench]") {
  const testing::TemporaryFolder folder;
  const auto read = ReadJsonLines(
      Options(Write(folder,
                    "{\"prompt\": \"abc\", \"output_length\": 2}\n"
                    "{\"token_ids\": [5, 6], \"output_length\": 3, \"timestamp\": 7}\n")),
      Bytes);
  REQUIRE(read.ok());
  CHECK(MakePrompt(read.value()[0], kVocabulary) == Ids{97, 98, 99});
  CHECK(MakePrompt(read.value()[1], kVocabulary) == Ids{5, 6});
  CHECK(read.value()[1].output_tokens == 3);
  for (const char* line :
       {R"({"output_length": 2})", R"({"prompt": "a", "token_ids": [1], "output_length": 2})",
        R"({"prompt": "", "output_length": 2})", R"({"token_ids": [], "output_length": 2})",
        R"({"prompt": "a"})", R"({"prompt": "a", "output_length": 1, "x": 1})", "\n"}) {
    CAPTURE(line);
    CHECK_FALSE(ReadJsonLines(Options(Write(folder, line)), Bytes).ok());
  }
  CHECK_FALSE(ReadJsonLines(Options(folder / "missing"), Bytes).ok());
}

TEST_CASE("ShareGPT's first turn is the prompt, its second the length", "[bench]") {
  const testing::TemporaryFolder folder;
  const std::string path =
      Write(folder,
            R"([{"id": "a", "conversations": [{"from": "human", "value": "hello"},
                                        {"from": "gpt", "value": "hi you"}]},
          {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},
          {"id": "c", "conversations": []},
          {"id": "d", "conversations": [{"from": "human", "value": "x"},
                                        {"from": "gpt", "value": ""}]},
          {"id": "e", "conversations": [{"from": "human", "value": "bye"},
                                        {"from": "gpt", "value": "so long"}]}])");
  const auto read = ReadShareGpt(Options(path), Bytes);
  REQUIRE(read.ok());
  REQUIRE(read.value().size() == 2);
  std::set<std::int64_t> outputs;
  for (const WorkloadRequest& request : read.value()) {
    outputs.insert(request.output_tokens);
    CHECK(request.input_tokens() == (request.output_tokens == 6 ? 5 : 3));
  }
  CHECK(outputs == std::set<std::int64_t>{6, 7});
  FileWorkloadOptions one = Options(path);
  one.requests = 1;
  CHECK(ReadShareGpt(one, Bytes).value().size() == 1);
  CHECK_FALSE(ReadShareGpt(Options(Write(folder, "{}")), Bytes).ok());
  CHECK_FALSE(ReadShareGpt(Options(Write(folder, "[]")), Bytes).ok());
  CHECK_FALSE(ReadShareGpt(Options(Write(folder, "[3]")), Bytes).ok());
}

TEST_CASE("requests beyond the context are named or left out, and counted", "[bench]") {
  auto requests = MakeRandomWorkload(Random(1));
  const auto is_long = [](const WorkloadRequest& request) {
    return request.input_tokens() + request.output_tokens > 140;
  };
  const auto expected = std::count_if(requests.begin(), requests.end(), is_long);
  REQUIRE(expected > 0);
  const auto refused = RemoveTooLong(requests, 140, TooLong::kRefuse);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message.find("the server's context is 140") != std::string::npos);
  CHECK(RemoveTooLong(requests, 140, TooLong::kSkip).value() == expected);
  CHECK(std::none_of(requests.begin(), requests.end(), is_long));
  CHECK(RemoveTooLong(requests, 140, TooLong::kRefuse).value() == 0);
  CHECK_FALSE(RemoveTooLong(requests, 10, TooLong::kSkip).ok());
}

TEST_CASE("arrivals keep their rate, evenly or with exponential gaps", "[bench]") {
  RandomWorkloadOptions options = Random(1);
  options.requests = 20'000;
  const auto requests = MakeRandomWorkload(options);
  LoadPoint point = {.arrival = Arrival::kConstant, .requests_per_s = 400};
  const auto even = ArrivalTimesUs(point, requests, 5).value();
  CHECK(even[0] == 0);
  CHECK(even[400] == 1'000'000);
  point.arrival = Arrival::kPoisson;
  const auto drawn = ArrivalTimesUs(point, requests, 5).value();
  CHECK(std::is_sorted(drawn.begin(), drawn.end()));
  // 20,000 gaps of 2.5 ms: the sum's deviation is 0.7 %, the share's below 0.35 %.
  CHECK(static_cast<double>(drawn.back()) == Approx(50e6).epsilon(0.03));
  std::int64_t beyond_mean = 0;
  for (std::size_t i = 1; i < drawn.size(); ++i) {
    beyond_mean += drawn[i] - drawn[i - 1] > 2500 ? 1 : 0;
  }
  CHECK(static_cast<double>(beyond_mean) / 20'000 == Approx(0.3679).margin(0.015));
  CHECK(ArrivalTimesUs(point, requests, 6).value() != drawn);
  CHECK(ArrivalTimesUs({.concurrency = 4}, requests, 5).value().back() == 0);
}

TEST_CASE("a trace is replayed at its own times, faster where asked", "[bench]") {
  auto requests = MakeRandomWorkload(Random(1));
  requests.resize(3);
  const LoadPoint point = {.arrival = Arrival::kTrace, .trace_speed = 2};
  const auto missing = ArrivalTimesUs(point, requests, 1);
  REQUIRE_FALSE(missing.ok());
  CHECK(missing.error().message.find("request 0: timestamp: missing") == 0);
  requests[0].arrival_us = 0;
  requests[1].arrival_us = 500;
  requests[2].arrival_us = 900;
  CHECK(ArrivalTimesUs(point, requests, 1).value() == std::vector<std::int64_t>{0, 250, 450});
  requests[2].arrival_us = 400;
  CHECK_FALSE(ArrivalTimesUs(point, requests, 1).ok());
}

}  // namespace dsa::bench
