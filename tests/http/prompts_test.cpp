// Several prompts in one completion: each is answered as if it had been sent alone, and all of them
// are one call.
#include "common/json.h"
#include "server/api/ask.h"
#include "tests/http/raw_client.h"
#include "tests/http/serving.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::prompts_test {
namespace {

using testing::Delta;
using testing::Eventually;
using testing::Exchange;
using testing::FakeEngine;
using testing::FreePort;
using testing::HttpServing;
using testing::LastDelta;
using testing::MustParse;
using testing::ParseEvents;
using testing::Post;
using testing::RawClient;
using testing::Reply;
using testing::SteppedEngine;
using testing::Submitted;

constexpr std::string_view kPath = "/v1/completions";

std::string Body(const std::string& prompts, const std::string& fields) {
  return fmt::format(R"({{"prompt": {}, {}}})", prompts, fields);
}

std::vector<Submitted> WaitForAll(FakeEngine& engine, std::size_t begin, std::size_t count) {
  std::vector<Submitted> all;
  for (std::size_t i = 0; i < count; ++i) {
    const auto one = engine.Wait(begin + i);
    REQUIRE(one);
    all.push_back(*one);
  }
  CHECK(engine.submitted() == begin + count);
  return all;
}

// What is said of the last token of a prompt.
std::vector<GeneratedToken> ScoreOf(const Request& request) {
  const TokenId last = request.prompt.back();
  const float logprob = -static_cast<float>(Value(last));
  return {{.id = last, .logprob = logprob, .top_logprobs = {{.id = last, .logprob = logprob}}}};
}

// Two answers to each of two prompts, [5, 7] and [6, 8], that come in no order but that of a prompt
// before its second answer.
void AnswerFour(const std::vector<Submitted>& all) {
  for (const std::size_t index : {2, 0, 3, 1}) {
    const Submitted& one = all[index];
    TokenDelta first = Delta(fmt::format("a{}", index), {1});
    first.usage.prompt_tokens = 2;
    if (one.request.prompt_logprobs && index % 2 == 0) {
      first.prompt = ScoreOf(one.request);
    }
    one.sink->OnDelta(std::move(first));
  }
  for (const std::size_t index : {3, 1, 0, 2}) {
    TokenDelta last = LastDelta(index == 3 ? FinishReason::kLength : FinishReason::kStop);
    last.text = "!";
    last.usage.prompt_tokens = 2;
    last.usage.cache_hit_tokens = index == 2 ? 1 : 0;
    last.usage.completion_tokens = 3;
    all[index].sink->OnDelta(std::move(last));
  }
}

const std::string kTwoPrompts = "[[5, 7], [6, 8]]";

void CheckUsage(const Json& usage) {
  CHECK(usage["prompt_tokens"] == 4);       // each prompt once
  CHECK(usage["completion_tokens"] == 12);  // of all answers
  CHECK(usage["total_tokens"] == 16);
  CHECK(usage["prompt_cache_hit_tokens"] == 1);
  CHECK(usage["prompt_cache_miss_tokens"] == 3);
}

TEST_CASE("each of several prompts has n choices, those of the first first", "[http][prompts]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  RawClient client(serving.port());
  client.Send(Post(kPath, Body(kTwoPrompts, R"("n": 2, "seed": 30, "max_tokens": 9)")));
  const std::vector<Submitted> all = WaitForAll(engine, 0, 4);
  const std::vector<std::vector<TokenId>> prompts = {{TokenId{5}, TokenId{7}},
                                                     {TokenId{6}, TokenId{8}}};
  std::set<RequestId> ids;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Request& request = all[i].request;
    CHECK(request.prompt == prompts[i / 2]);
    CHECK(request.sampling.seed == 30 + i % 2);  // of each prompt, as if it were alone
    CHECK(request.stop.max_tokens == 9);
    CHECK(request.external_id == all[0].request.external_id);
    ids.insert(request.id);
  }
  CHECK(ids.size() == 2);  // of the prompts; the engine gives those of further answers
  AnswerFour(all);
  const Reply reply = client.Read().value_or(Reply{});
  REQUIRE(reply.status == 200);
  const Json answer = MustParse(reply.body);
  REQUIRE(answer["choices"].size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(answer["choices"][i]["index"] == i);
    CHECK(answer["choices"][i]["text"] == fmt::format("a{}!", i));
    CHECK(answer["choices"][i]["finish_reason"] == (i == 3 ? "length" : "stop"));
  }
  CheckUsage(answer["usage"]);
}

TEST_CASE("a stream of several prompts has pieces of all of them", "[http][prompts]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  RawClient client(serving.port());
  client.Send(Post(
      kPath,
      Body(kTwoPrompts, R"("n": 2, "stream": true, "stream_options": {"include_usage": true})")));
  AnswerFour(WaitForAll(engine, 0, 4));
  const std::vector<Json> events = ParseEvents(client.Read().value_or(Reply{}).body);
  REQUIRE_FALSE(events.empty());
  std::map<int, std::string> texts;
  std::map<int, std::string> ends;
  for (std::size_t i = 0; i + 1 < events.size(); ++i) {
    const Json& choice = events[i]["choices"][0];
    CHECK(events[i]["usage"].is_null());
    const int index = choice["index"];
    CHECK(ends[index].empty());
    texts[index] += choice["text"].get<std::string>();
    ends[index] += choice["finish_reason"].is_null() ? "" : choice["finish_reason"];
  }
  CHECK(texts == std::map<int, std::string>{{0, "a0!"}, {1, "a1!"}, {2, "a2!"}, {3, "a3!"}});
  CHECK(ends == std::map<int, std::string>{{0, "stop"}, {1, "stop"}, {2, "stop"}, {3, "length"}});
  CHECK(events.back()["choices"].empty());
  CheckUsage(events.back()["usage"]);
}

TEST_CASE("each answer begins with its own prompt", "[http][prompts]") {
  FakeEngine engine;
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  const std::string echoes[] = {std::string(testing::ChatTokenizer().Bytes(TokenId{5})) +
                                    std::string(testing::ChatTokenizer().Bytes(TokenId{7})),
                                std::string(testing::ChatTokenizer().Bytes(TokenId{6})) +
                                    std::string(testing::ChatTokenizer().Bytes(TokenId{8}))};
  const auto check = [&](const std::string& text, const Json& logprobs, std::size_t index) {
    CAPTURE(index);
    CHECK(text == echoes[index / 2] + fmt::format("a{}!", index));
    REQUIRE(logprobs.size() == 3);
    CHECK(logprobs[0].is_null());
    CHECK(logprobs[1] == (index < 2 ? -7.0 : -8.0));
    CHECK(logprobs[2] == -0.5);
  };
  RawClient client(serving.port());
  const std::string fields = R"("n": 2, "echo": true, "logprobs": 1, "stream": )";
  client.Send(Post(kPath, Body(kTwoPrompts, fields + "false")));
  const std::vector<Submitted> all = WaitForAll(engine, 0, 4);
  CHECK(all[0].request.prompt_logprobs == 1);
  CHECK(all[2].request.prompt_logprobs == 1);
  AnswerFour(all);
  const Json whole = MustParse(client.Read().value_or(Reply{}).body);
  for (std::size_t i = 0; i < 4; ++i) {
    const Json& choice = whole["choices"][i];
    check(choice["text"], choice["logprobs"]["token_logprobs"], i);
    CHECK(choice["logprobs"]["text_offset"][2] == echoes[i / 2].size());
  }
  client.Send(Post(kPath, Body(kTwoPrompts, fields + "true")));
  AnswerFour(WaitForAll(engine, 4, 4));
  std::map<std::size_t, std::string> texts;
  std::map<std::size_t, Json> logprobs;
  for (const Json& event : ParseEvents(client.Read().value_or(Reply{}).body)) {
    const Json& choice = event["choices"][0];
    texts[choice["index"]] += choice["text"].get<std::string>();
    Json& of_choice = logprobs.emplace(choice["index"], Json::array()).first->second;
    for (const Json& one : choice["logprobs"]["token_logprobs"]) {
      of_choice.push_back(one);
    }
  }
  REQUIRE(texts.size() == 4);
  for (const auto& [index, text] : texts) {
    check(text, logprobs[index], index);
  }
}

TEST_CASE("each of several prompts has its log-probabilities as vLLM says them",
          "[http][prompts]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  RawClient client(serving.port());
  client.Send(Post(kPath, Body(kTwoPrompts, R"("n": 2, "prompt_logprobs": 1)")));
  AnswerFour(WaitForAll(engine, 0, 4));
  const Json answer = MustParse(client.Read().value_or(Reply{}).body);
  for (std::size_t i = 0; i < 4; ++i) {
    const Json& said = answer["choices"][i]["prompt_logprobs"];
    REQUIRE(said.size() == 2);
    CHECK(said[1].size() == 1);
    CHECK(said[1][i < 2 ? "7" : "8"]["logprob"] == (i < 2 ? -7.0 : -8.0));
  }
}

TEST_CASE("a list of one prompt is that prompt", "[http][prompts]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  RawClient client(serving.port());
  client.Send(Post(kPath, Body("[[5, 7]]", R"("max_tokens": 1)")));
  const std::vector<Submitted> all = WaitForAll(engine, 0, 1);
  CHECK(all[0].request.prompt == std::vector<TokenId>{TokenId{5}, TokenId{7}});
  all[0].sink->OnDelta(LastDelta(FinishReason::kStop));
  CHECK(MustParse(client.Read().value_or(Reply{}).body)["choices"].size() == 1);
}

TEST_CASE("what is wrong with one of several prompts is said with its index", "[http][prompts]") {
  FakeEngine engine;
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  serving.context().slow_client.logprobs_max = 100;
  const auto many = [](int count, std::string_view one) {
    std::string list = fmt::format("[{}", one);
    for (int i = 1; i < count; ++i) {
      list += fmt::format(", {}", one);
    }
    return list + "]";
  };
  const std::string long_one = many(4096, "1");
  struct Case {
    std::string prompts;
    std::string fields;
    std::string message;  // its beginning
    std::string param;
  };
  const Case cases[] = {
      {R"(["a", 5])", "", "prompt[1]: 5 is not a string or an array of token ids", "prompt[1]"},
      {R"(["a", null])", "", "prompt[1]: null is not a string or an array", "prompt[1]"},
      {R"([[1], [1, "x"]])", "", "prompt[1][1]: \"x\" is not an integer", "prompt[1][1]"},
      {R"([[1], [1, 129280]])", "", "prompt[1][1]: 129280 is not in [0, 129280)", "prompt[1][1]"},
      {"[[1], []]", "", "prompt[1]: empty: at least one token", "prompt[1]"},
      {R"(["a", ""])", R"(, "add_special_tokens": false)", "prompt[1]: empty", "prompt[1]"},
      {R"([5, "a"])", "", "prompt[1]: \"a\" is not an integer", "prompt[1]"},
      {"[]", "", "prompt: empty: at least one token", "prompt"},
      {"[1, 129280]", "", "prompt[1]: 129280 is not in [0, 129280)", "prompt[1]"},
      {"[[]]", "", "prompt[0]: empty: at least one token", "prompt[0]"},
      {"[[1, 129280]]", "", "prompt[0][1]: 129280 is not in [0, 129280)", "prompt[0][1]"},
      {fmt::format("[{}]", long_one), "", "prompt[0]: 4096 tokens, at most 4095", "prompt[0]"},
      {fmt::format("[{}]", many(4000, "1")), R"(, "max_tokens": 200)",
       "max_tokens: 200 is not in [1, 96]: the context has 4096 and the prompt 4000", "max_tokens"},
      {fmt::format("[[1], {}]", long_one), "", "prompt[1]: 4096 tokens, at most 4095", "prompt[1]"},
      {fmt::format("[[1], {}]", many(4000, "1")), R"(, "max_tokens": 200)",
       "max_tokens: 200 is not in [1, 96]: the context has 4096 and prompt[1] 4000", "max_tokens"},
      {many(513, "[1]"), "", "prompt: 513 prompts, at most 512", "prompt"},
      {many(33, "[1]"), R"(, "n": 16)",
       "prompt: 33 prompts with 16 answers each are 528, at most 512", "prompt"},
      {many(3, "[1]"), R"(, "n": 17)", "n: 17 is not in [1, 16]", "n"},
      {many(20, "[1, 1, 1]"), R"(, "echo": true, "logprobs": 1)",
       "logprobs with echo: 1 with 20 prompts of 60 tokens is 120 log-probabilities, at most 100",
       ""},
  };
  RawClient client(serving.port());
  for (const Case& one : cases) {
    CAPTURE(one.message);
    client.Send(Post(kPath, fmt::format(R"({{"prompt": {}{}}})", one.prompts, one.fields)));
    const Reply reply = client.Read().value_or(Reply{});
    CHECK(reply.status == 400);
    const Json error = MustParse(reply.body)["error"];
    CHECK(error["message"].get<std::string>().substr(0, one.message.size()) == one.message);
    CHECK(error["param"] == (one.param.empty() ? Json(nullptr) : Json(one.param)));
  }
  CHECK(engine.submitted() == 0);
}

TEST_CASE("a call has as many answers as it may have", "[http][prompts]") {
  CHECK(CheckAnswerCount(512, 1, "prompt").ok());
  CHECK(CheckAnswerCount(32, 16, "prompt").ok());
  CHECK_FALSE(CheckAnswerCount(513, 1, "prompt").ok());
  CHECK_FALSE(CheckAnswerCount(171, 3, "prompt").ok());
}

TEST_CASE("the log-probabilities of all prompts share their limit of memory", "[http][prompts]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  // Smaller amounts count for nothing.
  const std::int64_t row_bytes = std::int64_t{sizeof(GeneratedToken)};
  serving.context().slow_client.prompt_logprob_bytes_max = 1500 * row_bytes;
  std::string ids = "1";
  for (int i = 1; i < 1000; ++i) {
    ids += ",1";
  }
  const std::string prompts = fmt::format("[[{0}], [{0}]]", ids);
  const Reply reply =
      Exchange(serving.port(), Post(kPath, Body(prompts, R"("prompt_logprobs": 0)")));
  CHECK(reply.status == 429);
  CHECK(engine.submitted() == 0);
}

TEST_CASE("several prompts are queued all or none", "[http][prompts]") {
  SteppedEngine engine;  // 16 run, 64 wait
  HttpServing serving(engine.loop(), nullptr, FreePort());
  const auto ask = [&](int prompts, int n) {
    std::string list = "[1]";
    for (int i = 1; i < prompts; ++i) {
      list += ", [1]";
    }
    return Post(kPath,
                Body(fmt::format("[{}]", list), fmt::format(R"("max_tokens": 2, "n": {})", n)));
  };
  engine.steps().Hold();
  const Reply never = Exchange(serving.port(), ask(27, 3));
  CHECK(never.status == 400);  // however long it waited
  CHECK(never.body.find("81 requests together, at most 80") != std::string::npos);
  RawClient first(serving.port());
  first.Send(ask(25, 2));
  CHECK(Eventually(
      [&] { return engine.loop().Load().waiting + engine.loop().Load().running == 50; }));
  const Reply full = Exchange(serving.port(), ask(31, 1));
  CHECK(full.status == 429);
  CHECK(full.headers.count("retry-after") == 1);
  CHECK(engine.loop().Load().waiting + engine.loop().Load().running == 50);
  engine.steps().Resume();
  const Json answer = MustParse(first.Read().value_or(Reply{}).body);
  CHECK(answer["choices"].size() == 50);
  CHECK(answer["usage"]["completion_tokens"] == 100);
  CHECK(answer["usage"]["prompt_tokens"] == 25);
  CHECK(engine.BecomesQuiet());
}

TEST_CASE("answers to several prompts are those to each alone", "[http][prompts]") {
  SteppedEngine engine;  // whose tokens are told by the prompt's length
  HttpServing serving(engine.loop(), nullptr, FreePort());
  const auto choices = [&](const std::string& prompt, const std::string& fields) {
    const Reply reply = Exchange(serving.port(), Post(kPath, Body(prompt, fields)));
    REQUIRE(reply.status == 200);
    return MustParse(reply.body)["choices"];
  };
  const std::string prompts[] = {"[1]", "[2, 3, 4, 5, 6, 7]", "[8, 9]"};
  const std::string list = fmt::format("[{}, {}, {}]", prompts[0], prompts[1], prompts[2]);
  const std::string fields = R"("max_tokens": 7, "logprobs": 2, "n": 2, "stop": ["Z"])";
  const Json all = choices(list, fields);
  REQUIRE(all.size() == 6);
  for (std::size_t i = 0; i < 3; ++i) {
    Json alone = choices(prompts[i], fields);
    for (std::size_t j = 0; j < 2; ++j) {
      alone[j]["index"] = 2 * i + j;
      CHECK(all[2 * i + j] == alone[j]);
    }
  }
  CHECK(all[0]["text"] != all[2]["text"]);
}

TEST_CASE("a client that leaves ends the answers to all its prompts", "[http][prompts]") {
  for (const char* stream : {"false", "true"}) {
    CAPTURE(stream);
    SteppedEngine engine;
    HttpServing serving(engine.loop(), nullptr, FreePort());
    engine.steps().Hold();
    RawClient client(serving.port());
    client.Send(
        Post(kPath, Body("[[1], [2], [3], [4]]",
                         fmt::format(R"("max_tokens": 4000, "n": 5, "stream": {})", stream))));
    CHECK(Eventually(
        [&] { return engine.loop().Load().waiting + engine.loop().Load().running == 20; }));
    client.Close();
    CHECK(Eventually([&] {
      engine.steps().LetPass(1);
      return engine.loop().Load().running == 0 && engine.loop().Load().waiting == 0;
    }));
    CHECK(engine.loop().Load().steps < 2000);
    CHECK(engine.BecomesQuiet());
    CHECK(Eventually([&] { return serving.server().connections() == 0; }));
  }
}

TEST_CASE("an operator ends the answers to all prompts of a request", "[http][prompts]") {
  SteppedEngine engine;
  HttpServing serving(engine.loop(), nullptr, FreePort());
  engine.steps().Hold();
  RawClient client(serving.port());
  client.Send(Post(kPath, Body("[[1], [2], [3]]", R"("max_tokens": 4000, "request_id": "three")")));
  CHECK(Eventually([&] { return engine.loop().Abort("three"); }));  // once all three are queued
  engine.steps().Resume();
  const Json answer = MustParse(client.Read().value_or(Reply{}).body);
  REQUIRE(answer["choices"].size() == 3);
  for (const Json& choice : answer["choices"]) {
    CHECK(choice["finish_reason"] == "abort");
  }
}

TEST_CASE("where one answer fails the call does, and a stream keeps what it has",
          "[http][prompts]") {
  for (const bool stream : {false, true}) {
    CAPTURE(stream);
    FakeEngine engine;
    HttpServing serving(engine, nullptr, FreePort());
    RawClient client(serving.port());
    client.Send(Post(kPath, Body(kTwoPrompts, fmt::format(R"("stream": {})", stream))));
    const std::vector<Submitted> all = WaitForAll(engine, 0, 2);
    TokenDelta failed = LastDelta(FinishReason::kError);
    failed.error = Error{ErrorCode::kInternal, "non-finite logits"};
    all[0].sink->OnDelta(std::move(failed));
    all[1].sink->OnDelta(Delta("kept", {1}));
    all[1].sink->OnDelta(LastDelta(FinishReason::kStop));
    const Reply reply = client.Read().value_or(Reply{});
    CHECK(reply.status == (stream ? 200 : 500));
    CHECK(reply.body.find("non-finite logits") != std::string::npos);
    CHECK((reply.body.find("kept") != std::string::npos) == stream);
    CHECK(reply.body.find("[DONE]") == std::string::npos);
  }
}

}  // namespace
}  // namespace dsa::prompts_test
