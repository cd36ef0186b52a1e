// Fields of a request that change how tokens are drawn, as OpenAI's and vLLM's clients send them.
#include "common/json.h"
#include "tests/http/raw_client.h"
#include "tests/http/serving.h"

#include <span>
#include <utility>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::sampling_test {
namespace {

using testing::Delta;
using testing::FakeEngine;
using testing::FreePort;
using testing::HttpServing;
using testing::LastDelta;
using testing::Post;
using testing::RawClient;
using testing::Reply;

constexpr std::string_view kPath = "/v1/completions";

std::string Body(const std::string& fields) {
  return R"({"prompt": [1, 2], )" + fields + "}";
}

// A request as the engine hears of it.
Request Heard(const std::string& fields) {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  RawClient client(serving.port());
  client.Send(Post(kPath, Body(fields)));
  const auto submitted = engine.Wait(0);
  REQUIRE(submitted);
  submitted->sink->OnDelta(LastDelta(FinishReason::kStop));
  CHECK(client.Read().value_or(Reply{}).status == 200);
  return submitted->request;
}

TEST_CASE("penalties and biases reach the engine", "[http][sampling]") {
  const SamplingParams said =
      Heard(R"("frequency_penalty": 0.5, "presence_penalty": -0.25, "repetition_penalty": 1.5,
               "logit_bias": {"129279": -100, "17": 2.5, "4": 0})")
          .sampling;
  CHECK(said.frequency_penalty == 0.5F);
  CHECK(said.presence_penalty == -0.25F);
  CHECK(said.repetition_penalty == 1.5F);
  REQUIRE(said.logit_bias.size() == 2);
  CHECK(said.logit_bias[0].id == TokenId{17});
  CHECK(said.logit_bias[0].add == 2.5F);
  CHECK(said.logit_bias[1].id == TokenId{129279});
  const SamplingParams nothing =
      Heard(R"("frequency_penalty": 0, "presence_penalty": null, "logit_bias": {})").sampling;
  CHECK(nothing.frequency_penalty == 0.0F);
  CHECK(nothing.repetition_penalty == 1.0F);
  CHECK(nothing.logit_bias.empty());
}

TEST_CASE("a whole number may be written as others are", "[http][sampling]") {
  const Request heard = Heard(
      R"("max_tokens": 16.0, "min_tokens": 0.2e1, "top_k": 5E0, "seed": -3.0, "logit_bias": {"5": 1})");
  CHECK(heard.stop.max_tokens == 16);
  CHECK(heard.stop.min_tokens == 2);
  CHECK(heard.sampling.top_k == 5);
  CHECK(heard.sampling.seed == static_cast<std::uint64_t>(-3));
}

using Refused = std::pair<const char*, const char*>;  // fields, how the message begins

void CheckRefused(std::span<const Refused> cases) {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  RawClient client(serving.port());
  for (const auto& [fields, message] : cases) {
    CAPTURE(fields);
    client.Send(Post(kPath, Body(fields)));
    const std::optional<Reply> reply = client.Read();
    REQUIRE(reply);
    CHECK(reply->status == 400);
    CHECK(reply->body.find(fmt::format("\"message\":\"{}", message)) != std::string::npos);
  }
  CHECK(engine.submitted() == 0);
}

TEST_CASE("penalties and biases beyond their ranges are refused by name", "[http][sampling]") {
  const Refused cases[] = {
      {R"("logit_bias": {"1": 200})", "logit_bias[1]: 200 is not in [-100, 100]"},
      {R"("logit_bias": {"1": "x"})", "logit_bias[1]: \\\"x\\\" is not a number"},
      {R"("logit_bias": {"x": 2})", "logit_bias: x is not an integer"},
      {R"("logit_bias": {"5": 2, "05": 2})", "logit_bias: id 5 is named twice"},
      {R"("logit_bias": {"129280": 2})", "logit_bias: id 129280 is not in [0, 129280)"},
      {R"("logit_bias": [1])", "logit_bias: [1] is not an object"},
      {R"("presence_penalty": 2.1)", "presence_penalty: 2.1 is not in [-2, 2]"},
      {R"("frequency_penalty": -2.1)", "frequency_penalty: -2.1 is not in [-2, 2]"},
      {R"("repetition_penalty": 0)", "repetition_penalty: 0 is not in (0, 10]"},
      {R"("repetition_penalty": 1e39)", "repetition_penalty: inf is not in (0, 10]"},
      {R"("max_tokens": 2.5)", "max_tokens: 2.5 is not an integer of 64 bits"},
      {R"("seed": 1e16)", "seed: 1e+16 is not an integer of 64 bits"},
      {R"("seed": "3")", "seed: \\\"3\\\" is not an integer of 64 bits"},
  };
  CheckRefused(cases);
}

TEST_CASE("an echo stands before the answer, with its log-probabilities", "[http][sampling]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  for (const char* stream : {"false", "true"}) {
    CAPTURE(stream);
    RawClient client(serving.port());
    client.Send(
        Post(kPath, Body(fmt::format(R"("echo": true, "logprobs": 1, "stream": {})", stream))));
    const auto submitted = engine.Wait(engine.submitted() == 0 || *stream == 'f' ? 0 : 1);
    REQUIRE(submitted);
    CHECK(submitted->request.prompt_logprobs == 1);
    TokenDelta first = Delta("x", {7});
    first.prompt.push_back({.id = TokenId{2}, .logprob = -1.5F, .top_logprobs = {}});
    submitted->sink->OnDelta(std::move(first));
    TokenDelta second = Delta("y", {8});
    second.finish = FinishReason::kStop;
    submitted->sink->OnDelta(std::move(second));
    const std::string body = client.Read().value_or(Reply{}).body;
    // Of the prompt's first token there is none.
    CHECK(body.find(R"("token_logprobs":[null,-1.5,-0.5)") != std::string::npos);
    CHECK(body.find(R"("top_logprobs":[null,{})") != std::string::npos);
    CHECK(body.find(R"("text_offset":[0,0,0)") != std::string::npos);
    CHECK(body.find("null,-1.5") == body.rfind("null,-1.5"));  // once
  }
  CHECK_FALSE(Heard(R"("echo": true)").prompt_logprobs.has_value());
}

TEST_CASE("log-probabilities of a prompt are said as vLLM says them", "[http][sampling]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  const auto body = [&](const char* fields, std::size_t index) {
    RawClient client(serving.port());
    client.Send(Post(kPath, Body(fields)));
    const auto submitted = engine.Wait(index);
    REQUIRE(submitted);
    CHECK(submitted->request.prompt_logprobs == 2);
    TokenDelta delta = Delta("x", {7});
    delta.prompt.push_back({.id = TokenId{2},
                            .logprob = -0.5F,
                            .top_logprobs = {{.id = TokenId{3}, .logprob = -0.25F},
                                             {.id = TokenId{2}, .logprob = -0.5F}}});
    delta.finish = FinishReason::kStop;
    submitted->sink->OnDelta(std::move(delta));
    return client.Read().value_or(Reply{}).body;
  };
  const std::string said =
      R"("prompt_logprobs":[null,{"2":{"logprob":-0.5,"rank":2,"decoded_token":""},)"
      R"("3":{"logprob":-0.25,"rank":1,"decoded_token":""}}])";
  const std::string alone = body(R"("prompt_logprobs": 2)", 0);
  CHECK(alone.find(said) != std::string::npos);
  CHECK(alone.find(R"("logprobs":null)") != std::string::npos);
  // Beside the lists of the answer, which have the prompt only where it is repeated.
  const std::string beside = body(R"("prompt_logprobs": 2, "logprobs": 0)", 1);
  CHECK(beside.find(said) != std::string::npos);
  CHECK(beside.find(R"("token_logprobs":[-0.5])") != std::string::npos);
  const std::string both = body(R"("prompt_logprobs": 2, "logprobs": 2, "echo": true)", 2);
  CHECK(both.find(said) != std::string::npos);
  CHECK(both.find(R"("token_logprobs":[null,-0.5,-0.5])") != std::string::npos);
  // With echo alone they are in those lists.
  CHECK(body(R"("logprobs": 2, "echo": true)", 3).find("prompt_logprobs") == std::string::npos);
}

TEST_CASE("log-probabilities of a prompt that cannot be said are refused", "[http][sampling]") {
  const Refused cases[] = {
      {R"("prompt_logprobs": 21)", "prompt_logprobs: 21 is not in [0, 20]"},
      {R"("prompt_logprobs": -1)", "prompt_logprobs: -1 is not in [0, 20]"},
      {R"("prompt_logprobs": 1, "stream": true)", "prompt_logprobs: not with stream"},
      {R"("prompt_logprobs": 1, "logprobs": 2, "echo": true)",
       "prompt_logprobs: contradicts logprobs with echo"},
      {R"("max_tokens": 0)", "max_tokens: 0 is not in [1, "},
      {R"("max_tokens": 0, "logprobs": 1)", "max_tokens: 0 is not in [1, "},
      {R"("max_tokens": -1, "echo": true)", "max_tokens: -1 is not in [0, "},
      {R"("max_tokens": 0, "min_tokens": 1, "echo": true)", "min_tokens: 1 is not in [0, 0]"},
  };
  CheckRefused(cases);
}

// The engine's answer to a request that wants no token.
TokenDelta ScoredPrompt() {
  TokenDelta end;
  end.prompt.push_back(
      {.id = TokenId{2}, .logprob = -1.5F, .top_logprobs = {{.id = TokenId{2}, .logprob = -1.5F}}});
  end.finish = FinishReason::kLength;
  end.usage.prompt_tokens = 2;
  return end;
}

TEST_CASE("a prompt that only is scored may fill the context", "[http][sampling]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  const auto request = [](int tokens, std::string_view fields) {
    std::string ids = "1";
    for (int i = 1; i < tokens; ++i) {
      ids += ",1";
    }
    return Post(kPath, fmt::format(R"({{"prompt": [{}], {}}})", ids, fields));
  };
  RawClient client(serving.port());
  client.Send(request(4096, R"("echo": true, "logprobs": 1, "max_tokens": 0)"));
  const auto submitted = engine.Wait(0);
  REQUIRE(submitted);
  CHECK(submitted->request.prompt.size() == 4096);
  submitted->sink->OnDelta(ScoredPrompt());
  CHECK(client.Read().value_or(Reply{}).status == 200);
  const auto refusal = [&](int tokens, std::string_view fields) {
    const Reply reply = testing::Exchange(serving.port(), request(tokens, fields));
    CHECK(reply.status == 400);
    return reply.body;
  };
  CHECK(refusal(4097, R"("echo": true, "max_tokens": 0)")
            .find("prompt: 4097 tokens, at most 4096: the context has 4096\"") !=
        std::string::npos);
  for (const char* fields :
       {R"("echo": true, "max_tokens": 1)", R"("echo": true)", R"("max_tokens": 0)"}) {
    CHECK(
        refusal(4096, fields)
            .find("prompt: 4096 tokens, at most 4095: the context has 4096 and an answer needs") !=
        std::string::npos);
  }
}

TEST_CASE("a prompt is scored and nothing generated", "[http][sampling]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  const auto body = [&](const std::string& fields, std::size_t index) {
    RawClient client(serving.port());
    client.Send(Post(kPath, Body(R"("max_tokens": 0, )" + fields)));
    const auto submitted = engine.Wait(index);
    REQUIRE(submitted);
    CHECK(submitted->request.stop.max_tokens == 0);
    submitted->sink->OnDelta(ScoredPrompt());
    const Reply reply = client.Read().value_or(Reply{});
    CHECK(reply.status == 200);
    return reply.body;
  };
  const auto check = [](const std::string& said) {
    CAPTURE(said);
    CHECK(said.find(R"("token_logprobs":[null,-1.5])") != std::string::npos);
    CHECK(said.find(R"("finish_reason":"length")") != std::string::npos);
  };
  const std::string whole = body(R"("echo": true, "logprobs": 1)", 0);
  check(whole);
  CHECK(whole.find(R"("prompt_tokens":2,)") != std::string::npos);
  CHECK(whole.find(R"("completion_tokens":0,)") != std::string::npos);
  const std::string stream = body(R"("echo": true, "logprobs": 1, "stream": true)", 1);
  check(stream);
  CHECK(stream.ends_with("data: [DONE]\n\n"));
  const std::string alone = body(R"("prompt_logprobs": 1)", 2);
  CHECK(alone.find(R"("prompt_logprobs":[null,{"2":{"logprob":-1.5,"rank":1)") !=
        std::string::npos);
  // Without log-probabilities, as OpenAI has it, the prompt comes back.
  CHECK(body(R"("echo": true)", 3).find(R"("logprobs":null)") != std::string::npos);
}

TEST_CASE("each of several answers has the prompt's log-probabilities", "[http][sampling]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  const auto body = [&](const std::string& fields, std::size_t index) {
    RawClient client(serving.port());
    client.Send(Post(kPath, Body(R"("n": 2, )" + fields)));
    const auto first = engine.Wait(index);
    const auto second = engine.Wait(index + 1);
    REQUIRE((first && second));
    TokenDelta delta = Delta("x", {7});
    delta.prompt = ScoredPrompt().prompt;
    first->sink->OnDelta(std::move(delta));
    second->sink->OnDelta(Delta("y", {8}));
    second->sink->OnDelta(LastDelta(FinishReason::kStop));
    first->sink->OnDelta(LastDelta(FinishReason::kLength));
    return client.Read().value_or(Reply{}).body;
  };
  const auto count = [](const std::string& text, const std::string& part) {
    int times = 0;
    for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
      ++times;
    }
    return times;
  };
  const std::string whole = body(R"("echo": true, "logprobs": 1)", 0);
  CAPTURE(whole);
  CHECK(count(whole, R"("token_logprobs":[null,-1.5,-0.5])") == 2);
  CHECK(count(whole, R"("prompt_tokens":3,)") == 1);
  const std::string stream = body(R"("echo": true, "logprobs": 1, "stream": true)", 2);
  CAPTURE(stream);
  CHECK(count(stream, "null,-1.5") == 2);  // once for each
  CHECK(count(body(R"("prompt_logprobs": 1)", 4), R"("prompt_logprobs":[null,{"2":)") == 2);
}

TEST_CASE("log-probabilities of prompts have a limit of memory", "[http][sampling]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  const std::int64_t row_bytes =
      static_cast<std::int64_t>(sizeof(GeneratedToken) + sizeof(TokenLogprob));
  constexpr std::int64_t kTokens = 1000;
  serving.context().slow_client.prompt_logprob_bytes_max = kTokens * row_bytes;
  std::string body = R"({"prompt_logprobs": 1, "max_tokens": 1, "prompt": [1)";
  for (std::int64_t i = 1; i < kTokens; ++i) {
    body += ",1";
  }
  body += "]}";
  std::optional<RawClient> first(serving.port());
  first->Send(Post(kPath, body));
  std::optional<testing::Submitted> submitted = engine.Wait(0);
  REQUIRE(submitted);
  RawClient second(serving.port());
  second.Send(Post(kPath, body));
  const std::optional<Reply> refused = second.Read();
  REQUIRE(refused);
  CHECK(refused->status == 429);
  CHECK(refused->body.find("prompt_logprobs: those of all requests together hold ") !=
        std::string::npos);
  submitted->sink->OnDelta(LastDelta(FinishReason::kStop));
  CHECK(first->Read().value_or(Reply{}).status == 200);
  // What it had is free once nobody has the call any more, a moment later.
  submitted.reset();
  engine.Forget();
  AnswerBudget& budget = *serving.context().prompt_logprobs;
  const std::int64_t all = serving.context().slow_client.prompt_logprob_bytes_max;
  CHECK(testing::Eventually([&] { return budget.Take(all, all); }));
}

// Two answers, the second of which ends first.
std::string TwoAnswers(const std::string& fields) {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  RawClient client(serving.port());
  client.Send(Post(kPath, Body(R"("n": 2, "seed": 5, )" + fields)));
  const auto first = engine.Wait(0);
  const auto second = engine.Wait(1);
  REQUIRE((first && second));
  CHECK(second->request.sampling.seed == 6);
  second->sink->OnDelta(Delta("two", {1}));
  second->sink->OnDelta(LastDelta(FinishReason::kLength));
  first->sink->OnDelta(Delta("one", {1}));
  first->sink->OnDelta(LastDelta(FinishReason::kStop));
  const Reply reply = client.Read().value_or(Reply{});
  CHECK(reply.status == 200);
  return reply.body;
}

TEST_CASE("several answers have their indices, whole and in a stream", "[http][sampling]") {
  const std::string whole = TwoAnswers(R"("stream": false)");
  CHECK(whole.find(R"([{"index":0,"text":"one","logprobs":null,"finish_reason":"stop"},)"
                   R"({"index":1,"text":"two","logprobs":null,"finish_reason":"length"}])") !=
        std::string::npos);
  CHECK(whole.find(R"("prompt_tokens":3,)") != std::string::npos);      // once
  CHECK(whole.find(R"("completion_tokens":4,)") != std::string::npos);  // of both
  const std::string stream =
      TwoAnswers(R"("stream": true, "stream_options": {"include_usage": true})");
  const std::vector<Json> events = testing::ParseEvents(stream);
  REQUIRE_FALSE(events.empty());
  CHECK(events.back()["usage"]["completion_tokens"] == 4);
  CHECK(events.back()["choices"].empty());
  std::string texts[2];
  std::string ends[2];
  for (std::size_t i = 0; i + 1 < events.size(); ++i) {
    const Json& choice = events[i]["choices"][0];
    const std::size_t index = choice["index"];
    REQUIRE(index < 2);
    texts[index] += choice["text"].get<std::string>();
    ends[index] += choice["finish_reason"].is_null() ? "" : choice["finish_reason"];
  }
  CHECK(texts[0] == "one");
  CHECK(texts[1] == "two");
  CHECK(ends[0] == "stop");
  CHECK(ends[1] == "length");
}

}  // namespace
}  // namespace dsa::sampling_test
