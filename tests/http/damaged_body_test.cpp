// Bodies with bytes changed, lost and doubled: read, or refused in one plain line.
#include "common/prng.h"
#include "server/http/openai/generation_request.h"
#include "tests/http/raw_client.h"
#include "tests/http/serving.h"
#include "tests/log_capture.h"

#include <algorithm>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::damaged_body_test {
namespace {

constexpr std::string_view kSeed =
    R"({"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content":)"
    R"( [{"type": "text", "text": "é"}]}, {"role": "assistant", "content": null, "tool_calls": [)"
    R"({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role":)"
    R"( "tool", "tool_call_id": "1", "content": "x"}], "tools": [{"type": "function", "function":)"
    R"( {"name": "f"}}], "tool_choice": "auto", "prompt": [[1, 2]], "temperature": 1e-1, "top_k":)"
    R"( -1, "stop": ["a"], "stop_token_ids": [3], "logprobs": true, "top_logprobs": 2, "stream":)"
    R"( true, "stream_options": {"include_usage": true}, "thinking": {"type": "enabled"},)"
    R"( "chat_template_kwargs": {"thinking": true}, "n": 1, "logit_bias": {"5": 0}, "other": 0})";

std::string Damaged(std::uint64_t round) {
  std::string body(kSeed);
  const std::uint64_t times = 1 + CounterBits(round, 0) % 3;
  for (std::uint64_t i = 1; i <= times; ++i) {
    const std::uint64_t bits = CounterBits(round, i);
    const std::size_t at = (bits >> 16) % body.size();
    switch (bits % 4) {
      case 0: body[at] = static_cast<char>(bits >> 8); break;
      case 1: body.erase(at, 1 + (bits >> 8) % 8); break;
      case 2: body.insert(at, body.substr(at, 1 + (bits >> 8) % 8)); break;
      default: body.resize(at + 1); break;
    }
  }
  return body;
}

TEST_CASE("a damaged body is read or refused in one line", "[http][fuzz]") {
  int refused = 0;
  constexpr int kRounds = 4000;
  for (std::uint64_t round = 0; round < kRounds; ++round) {
    const std::string body = Damaged(round);
    for (const Endpoint endpoint : {Endpoint::kChat, Endpoint::kCompletion}) {
      Ask ask;
      AnswerForm form;
      FieldNames names = FieldNamesOf(endpoint);
      const Status status = ReadGeneration(endpoint, body, UnknownKeys::kRefused, ask, form, names);
      if (status.ok()) {
        continue;
      }
      ++refused;
      const std::string& message = status.error().message;
      CAPTURE(body, message);
      REQUIRE(message.size() < 1000);
      REQUIRE(std::all_of(message.begin(), message.end(), [](char c) {
        return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
      }));
    }
  }
  CHECK(refused > kRounds / 2);
}

TEST_CASE("fields that nobody knows are ignored and counted", "[http]") {
  for (const Endpoint endpoint : {Endpoint::kChat, Endpoint::kCompletion}) {
    const std::string body =
        endpoint == Endpoint::kChat
            ? R"({"messages": [{"role": "user", "content": "a"}], "one": 1, "two": {}})"
            : R"({"prompt": [1], "one": 1, "two": {}})";
    Ask ask;
    AnswerForm form;
    FieldNames names = FieldNamesOf(endpoint);
    CHECK(ReadGeneration(endpoint, body, UnknownKeys::kIgnored, ask, form, names).ok());
    CHECK(ask.ignored_fields == 2);
  }
}

TEST_CASE("the line of a call says how many fields nobody knew", "[http]") {
  testing::SteppedEngine engine;
  testing::HttpServing serving(engine.loop(), nullptr, testing::FreePort());
  const testing::LogCapture log;
  for (const char* fields : {"", R"(, "one": 1, "two": {})"}) {
    const std::string body = fmt::format(R"({{"prompt": [1], "max_tokens": 1{}}})", fields);
    CHECK(testing::Exchange(serving.port(), testing::Post("/v1/completions", body)).status == 200);
  }
  const auto lines = [&](const char* count) {
    return log.Lines(fmt::format("ignored_fields={}", count)).size() +
           log.Lines(fmt::format("\"ignored_fields\":{}", count)).size();
  };
  CHECK(testing::Eventually([&] { return lines("0") == 1 && lines("2") == 1; }));
}

}  // namespace
}  // namespace dsa::damaged_body_test
