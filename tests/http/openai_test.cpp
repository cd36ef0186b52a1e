// What OpenAI's clients send and see.
#include "common/json.h"
#include "tests/http/raw_client.h"
#include "tests/http/serving.h"

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::openai_test {
namespace {

using testing::Delta;
using testing::Exchange;
using testing::FakeEngine;
using testing::FreePort;
using testing::Get;
using testing::HttpServing;
using testing::LastDelta;
using testing::MustParse;
using testing::ParseEvents;
using testing::Post;
using testing::RawClient;
using testing::Reply;
using testing::SteppedEngine;

constexpr std::string_view kChat = "/v1/chat/completions";
constexpr std::string_view kCompletions = "/v1/completions";

std::string ErrorMessage(const Reply& reply) {
  return MustParse(reply.body)["error"]["message"].get<std::string>();
}

TEST_CASE("simple routes answer, others are told what is wrong", "[http]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  const auto ask = [&](const std::string& request) { return Exchange(serving.port(), request); };
  CHECK(ask(Get("/health")).status == 200);
  CHECK(ask(Get("/ready?verbose=1")).status == 200);
  CHECK(MustParse(ask(Get("/version")).body) == Json{{"version", "9"}});
  const Reply models = ask(Get("/v1/models"));
  CHECK(models.headers.at("content-type") == "application/json");
  CHECK(MustParse(models.body)["object"] == "list");
  CHECK(MustParse(models.body)["data"][0]["id"] == "m");
  CHECK(MustParse(models.body)["data"][0]["max_model_len"] == 4096);
  CHECK(MustParse(models.body)["data"][0]["created"] > 1'700'000'000);
  CHECK(MustParse(ask(Get("/v1/models/m")).body)["id"] == "m");

  const Reply unknown = ask(Get("/v1/models/other"));
  CHECK(unknown.status == 404);
  CHECK(ErrorMessage(unknown) == "model: \"other\" is not served; \"m\" is");
  CHECK(MustParse(unknown.body)["error"]["code"] == "model_not_found");
  CHECK(ask(Get("/v2")).status == 404);
  const Reply method = ask(Get(kChat));
  CHECK(method.status == 405);
  CHECK(method.headers.at("allow") == "POST");
  CHECK(ask("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").status ==
        415);
  const std::string typed = Post("/v1/completions", "{}");
  CHECK(ErrorMessage(ask(std::string(typed).replace(typed.find("application/json"), 16,
                                                    "Application/JSON; charset=utf-8")))
            .starts_with("prompt: missing"));
  CHECK(ask("GET http://x:1/version?v HTTP/1.1\r\nHost: x:1\r\n\r\n").status == 200);
  // A HEAD has the header of a GET and no body: what comes next is the next answer.
  RawClient balancer(serving.port());
  balancer.Send("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n" + Get("/version"));
  const std::optional<Reply> head = balancer.ReadBeginning();
  REQUIRE(head);
  CHECK(head->status == 200);
  CHECK(head->headers.at("content-length") == "18");
  CHECK(balancer.Read().value_or(Reply{}).body == R"({"version":"9"})");
  serving.server().SetStalled(true);
  CHECK(ask(Get("/ready")).status == 503);
  CHECK(ask(Get("/health")).status == 200);
  serving.server().SetStalled(false);
  CHECK(ask(Get("/ready")).status == 200);
}

TEST_CASE("a completion comes whole", "[http]") {
  SteppedEngine engine;
  HttpServing serving(engine.loop(), nullptr, FreePort());
  const Reply reply = Exchange(
      serving.port(),
      Post(kCompletions, R"({"model": "m", "prompt": [1, 2], "max_tokens": 3, "logprobs": 1})",
           "X-Request-Id: mine\r\n"));
  REQUIRE(reply.status == 200);
  CHECK(reply.headers.at("x-request-id") == "mine");
  CHECK(reply.headers.at("x-dsa-instance").size() == 32);
  const Json answer = MustParse(reply.body);
  CHECK(answer["id"] == "cmpl-mine");
  CHECK(answer["object"] == "text_completion");
  CHECK(answer["model"] == "m");
  const Json& choice = answer["choices"][0];
  CHECK(choice["text"] == "cde");
  CHECK(choice["finish_reason"] == "length");
  CHECK(choice["logprobs"]["token_logprobs"] == Json({-0.5, -0.5, -0.5}));
  CHECK(choice["logprobs"]["text_offset"] == Json({0, 1, 2}));
  CHECK(answer["usage"]["prompt_tokens"] == 2);
  CHECK(answer["usage"]["completion_tokens"] == 3);
  CHECK(answer["usage"]["total_tokens"] == 5);
  CHECK(engine.BecomesQuiet());
}

TEST_CASE("a completion comes as a stream", "[http]") {
  SteppedEngine engine;
  HttpServing serving(engine.loop(), nullptr, FreePort());
  RawClient client(serving.port());
  for (int turn = 0; turn < 2; ++turn) {  // on one connection
    client.Send(Post(kCompletions, R"({"prompt": [1, 2], "max_tokens": 8, "stream": true,
                                       "stream_options": {"include_usage": true}})"));
    const std::optional<Reply> reply = client.Read();
    REQUIRE(reply);
    CHECK(reply->status == 200);
    CHECK(reply->headers.at("content-type") == "text/event-stream; charset=utf-8");
    CHECK(reply->headers.count("x-request-id") == 1);
    const std::vector<Json> events = ParseEvents(reply->body);
    REQUIRE(events.size() >= 2);
    const Json& usage = events.back();
    CHECK(usage["choices"].empty());
    CHECK(usage["usage"]["completion_tokens"] == 8);
    std::string text;
    for (std::size_t i = 0; i + 1 < events.size(); ++i) {
      const Json& choice = events[i]["choices"][0];
      text += choice["text"].get<std::string>();
      CHECK(choice["finish_reason"].is_null() == (i + 2 < events.size()));
      CHECK(events[i].at("usage").is_null());
    }
    CHECK(text == "cdefghij");
  }
}

// Asks, lets the engine say `deltas`, and reads the answer.
Reply AskFake(HttpServing& serving, FakeEngine& engine, const std::string& request,
              std::vector<TokenDelta> deltas) {
  RawClient client(serving.port());
  const std::size_t number = engine.submitted();
  client.Send(request);
  const auto submitted = engine.Wait(number);
  REQUIRE(submitted);
  for (TokenDelta& delta : deltas) {
    submitted->sink->OnDelta(std::move(delta));
  }
  const std::optional<Reply> reply = client.Read();
  REQUIRE(reply);
  return *reply;
}

TEST_CASE("a chat has reasoning, content and tool calls", "[http][chat]") {
  FakeEngine engine;
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  const std::string messages =
      R"("messages": [{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": [{"type": "text", "text": "H"},
                                                   {"type": "text", "text": "i"}]}],
         "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}])";
  const auto deltas = [] {
    return std::vector<TokenDelta>{Delta("because", {10, 11}), Delta("</think>", {12}),
                                   Delta("Hello", {13}), LastDelta(FinishReason::kStop)};
  };
  for (const char* thinking :
       {R"("thinking": {"type": "enabled"})", R"("chat_template_kwargs": {"thinking": true})",
        R"("reasoning_effort": "high")"}) {
    const Json answer =
        MustParse(AskFake(serving, engine,
                          Post(kChat, fmt::format("{{{}, {}}}", messages, thinking)), deltas())
                      .body);
    const Json& choice = answer["choices"][0];
    CHECK(answer["object"] == "chat.completion");
    CHECK(choice["message"]["role"] == "assistant");
    CHECK(choice["message"]["reasoning_content"] == "because");
    CHECK(choice["message"]["content"] == "Hello");
    CHECK(choice["finish_reason"] == "stop");
    CHECK(answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3);
    CHECK(answer["usage"]["prompt_cache_hit_tokens"] == 1);
    CHECK(answer["usage"]["prompt_cache_miss_tokens"] == 2);
  }
  // The prompt is the one that the template makes of the parts together.
  const std::string prompt = [&] {
    std::string text;
    IncrementalDecoder decoder(testing::ChatTokenizer());
    const Request request = engine.Wait(0)->request;
    for (const TokenId id : request.prompt) {
      decoder.Push(id, text);
    }
    return text;
  }();
  CHECK(prompt.find("Be brief.") != std::string::npos);
  CHECK(prompt.find("Hi") != std::string::npos);
  CHECK(prompt.find("\"name\": \"f\"") != std::string::npos);

  const Reply stream = AskFake(
      serving, engine,
      Post(kChat,
           fmt::format(R"({{{}, "stream": true, "thinking": {{"type": "enabled"}}}})", messages)),
      deltas());
  std::string reasoning;
  std::string content;
  const std::vector<Json> events = ParseEvents(stream.body);
  for (std::size_t i = 0; i < events.size(); ++i) {
    const Json& delta = events[i]["choices"][0]["delta"];
    CHECK((delta.count("role") == 1) == (i == 0));
    CHECK(events[i].count("usage") == 0);
    reasoning += delta.value("reasoning_content", "");
    content += delta.value("content", "");
  }
  REQUIRE_FALSE(events.empty());
  CHECK(events.back()["choices"][0]["finish_reason"] == "stop");
  CHECK(reasoning == "because");
  CHECK(content == "Hello");

  // With tool_choice none the model does not hear of them.
  AskFake(serving, engine, Post(kChat, fmt::format(R"({{{}, "tool_choice": "none"}})", messages)),
          deltas());
  CHECK(engine.Wait(4)->request.prompt.size() < engine.Wait(0)->request.prompt.size());
}

TEST_CASE("tool calls come with an id, and the finish says so", "[http][chat]") {
  FakeEngine engine;
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  const auto ask = [&](const char* stream) {
    std::vector<TokenDelta> deltas;
    deltas.push_back(Delta(
        "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"x\" "
        "string=\"false\">1</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        {1}));
    deltas.push_back(LastDelta(FinishReason::kStop));
    return AskFake(serving, engine,
                   Post(kChat, fmt::format(R"({{"messages": [{{"role": "user", "content": "x"}}],
                                              "stream": {}}})",
                                           stream)),
                   std::move(deltas));
  };
  const Json choice = MustParse(ask("false").body)["choices"][0];
  CHECK(choice["finish_reason"] == "tool_calls");
  CHECK(choice["message"]["content"].is_null());
  const Json& call = choice["message"]["tool_calls"][0];
  CHECK(call["type"] == "function");
  CHECK_FALSE(call["id"].get<std::string>().empty());
  CHECK(call["function"]["name"] == "f");
  CHECK(MustParse(call["function"]["arguments"].get<std::string>()) == Json{{"x", 1}});
  bool called = false;
  for (const Json& event : ParseEvents(ask("true").body)) {
    if (event["choices"][0]["delta"].count("tool_calls") == 1) {
      called = true;
      CHECK(event["choices"][0]["delta"]["tool_calls"][0]["index"] == 0);
      CHECK(event["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "f");
    }
  }
  CHECK(called);
}

TEST_CASE("what a field says is used", "[http]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  AskFake(serving, engine,
          Post(kCompletions, R"({"prompt": [[5, 6]], "max_completion_tokens": 9, "min_tokens": 2,
                                 "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125,
                                 "seed": -1, "stop": "x", "stop_token_ids": [3, 4],
                                 "ignore_eos": true, "logprobs": 4, "priority": -2,
                                 "cache_salt": "s", "request_id": "r-1", "user": "u", "n": 1,
                                 "frequency_penalty": 0, "logit_bias": {}, "stream": false,
                                 "response_format": {"type": "text"}, "nobody_knows": [1]})"),
          {LastDelta(FinishReason::kStop)});
  const Request request = engine.Wait(0)->request;
  CHECK(request.prompt == std::vector<TokenId>{TokenId{5}, TokenId{6}});
  CHECK(request.stop.max_tokens == 9);
  CHECK(request.stop.min_tokens == 2);
  CHECK(request.sampling.temperature == 0.5F);
  CHECK(request.sampling.top_p == 0.25F);
  CHECK(request.sampling.top_k == 7);
  CHECK(request.sampling.min_p == 0.125F);
  CHECK(request.sampling.seed == ~std::uint64_t{0});
  CHECK(request.sampling.top_logprobs == 4);
  CHECK(request.stop.stop_strings == std::vector<std::string>{"x"});
  CHECK(request.stop.stop_ids == std::vector<TokenId>{TokenId{3}, TokenId{4}});
  CHECK(request.stop.ignore_end);
  CHECK(request.priority == -2);
  CHECK(request.cache_salt == "s");
  CHECK(request.external_id == "r-1");
}

TEST_CASE("what cannot be done is refused by name", "[http]") {
  struct Case {
    std::string_view path;
    std::string body;
    int status;
    std::string message;  // its beginning
    std::string param;
  };
  const std::string user = R"("messages": [{"role": "user", "content": "x"}])";
  const auto ids = [](const std::string& more) { return R"({"prompt": [1], )" + more + "}"; };
  const auto chat = [&](const std::string& more) { return "{" + user + ", " + more + "}"; };
  const std::vector<Case> cases = {
      {kCompletions, "{\n \"prompt\": [1,]}", 400, "body: not valid JSON: line 2, column ", ""},
      {kCompletions, "[]", 400, "body: not a JSON object", ""},
      {kCompletions, "{}", 400, "prompt: missing", "prompt"},
      {kCompletions, R"({"prompt": []})", 400, "prompt: empty", "prompt"},
      {kCompletions, R"({"prompt": [129280]})", 400, "prompt[0]: 129280 is not in [0, 129280)",
       "prompt[0]"},
      {kCompletions, R"({"prompt": [1.5]})", 400, "prompt[0]: 1.5 is not an integer", "prompt[0]"},
      {kCompletions, ids(R"("temperature": 2.5)"), 400, "temperature: 2.5 is not in [0, 2]",
       "temperature"},
      {kCompletions, ids(R"("temperature": "hot")"), 400, "temperature: \"hot\" is not a number",
       "temperature"},
      {kCompletions, ids(R"("max_tokens": 5000)"), 400, "max_tokens: 5000 is not in [1, 4095]",
       "max_tokens"},
      {kCompletions, ids(R"("max_completion_tokens": 0)"), 400,
       "max_completion_tokens: 0 is not in", "max_completion_tokens"},
      {kCompletions, ids(R"("max_tokens": 1, "max_completion_tokens": 2)"), 400,
       "max_completion_tokens: contradicts max_tokens", "max_completion_tokens"},
      {kCompletions, ids(R"("n": 17)"), 400, "n: 17 is not in [1, 16]", "n"},
      {kChat, chat(R"("echo": true)"), 400, "echo: not supported yet", "echo"},
      {kCompletions, ids(R"("logprobs": 21)"), 400, "logprobs: 21 is not in [0, 20]", "logprobs"},
      {kCompletions, ids(R"("stop": ["a", 1])"), 400, "stop[1]: 1 is not a string", "stop[1]"},
      {kCompletions, ids(R"("stream_options": {"include_usage": true})"), 400,
       "stream_options: only with stream", "stream_options"},
      {kCompletions, ids(R"("model": "other")"), 404, "model: \"other\" is not served", "model"},
      {kCompletions, ids(R"("request_id": "a b")"), 400, "request_id: \"a b\" has characters",
       "request_id"},
      {kCompletions, ids(R"("request_id": "live")"), 409,
       "request_id: \"live\" names a request that is live", "request_id"},
      {kChat, "{}", 400, "messages: missing", "messages"},
      {kChat, R"({"messages": []})", 400, "messages: empty", "messages"},
      {kChat, R"({"messages": [{"role": "user"}]})", 400, "messages[0].content: missing",
       "messages[0].content"},
      {kChat, R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", 400,
       "messages[0].content[0].type: only text parts", "messages[0].content[0].type"},
      {kChat, R"({"messages": [{"role": "king", "content": "x"}]})", 400,
       R"(messages[0].role: "king" is not one of)", "messages[0].role"},
      {kChat, chat(R"("tool_choice": "required")"), 400, "tool_choice: a call cannot be forced",
       "tool_choice"},
      {kChat, chat(R"("parallel_tool_calls": false)"), 400, "parallel_tool_calls: not supported",
       "parallel_tool_calls"},
      {kChat, chat(R"("tools": [{"type": "function", "function": {}}])"), 400, "tools[0].function",
       ""},
      {kChat, chat(R"("modalities": ["text", "audio"])"), 400, "modalities: not supported",
       "modalities"},
      {kChat, chat(R"("add_special_tokens": true)"), 400, "add_special_tokens: not supported",
       "add_special_tokens"},
      {kChat, chat(R"("response_format": {"type": "json_object"})"), 400,
       "response_format: not supported yet", "response_format"},
      {kChat, chat(R"("top_logprobs": 2)"), 400, "top_logprobs: 2 needs logprobs", "top_logprobs"},
      {kChat, chat(R"("thinking": {"type": "enabled"}, "reasoning_effort": "none")"), 400,
       "reasoning_effort: contradicts thinking", "reasoning_effort"},
      {kChat, chat(R"("reasoning_effort": "huge")"), 400, "reasoning_effort: \"huge\" is not one",
       "reasoning_effort"},
  };
  FakeEngine engine;
  engine.live = {"live"};
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  RawClient client(serving.port());  // which outlives its mistakes
  for (const Case& one : cases) {
    CAPTURE(one.body);
    client.Send(Post(one.path, one.body));
    const std::optional<Reply> reply = client.Read();
    REQUIRE(reply);
    CHECK(reply->status == one.status);
    const Json error = MustParse(reply->body)["error"];
    CHECK(error["message"].get<std::string>().substr(0, one.message.size()) == one.message);
    if (!one.param.empty()) {
      CHECK(error["param"] == one.param);
    }
    CHECK(error["type"] == "invalid_request_error");
  }
  CHECK(engine.submitted() == 0);
}

TEST_CASE("unknown fields are an error where the server is strict", "[http]") {
  FakeEngine engine;
  HttpServerConfig config = FreePort();
  config.strict = true;
  HttpServing serving(engine, nullptr, config);
  const Reply reply =
      Exchange(serving.port(), Post(kCompletions, R"({"prompt": [1], "nobody_knows": 1})"));
  CHECK(reply.status == 400);
  CHECK(ErrorMessage(reply) == "nobody_knows: no such field");
}

TEST_CASE("how a request ends decides the status, or the last event", "[http]") {
  struct Case {
    ErrorCode code;
    int status;
  };
  const auto one = GENERATE(values<Case>({{ErrorCode::kResourceExhausted, 429},
                                          {ErrorCode::kUnavailable, 503},
                                          {ErrorCode::kDeadlineExceeded, 504},
                                          {ErrorCode::kInternal, 500}}));
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  engine.refusal = Error{one.code, "queue full: 512 wait"};
  const Reply refused = Exchange(serving.port(), Post(kCompletions, R"({"prompt": [1]})"));
  CHECK(refused.status == one.status);
  CHECK(ErrorMessage(refused) == "queue full: 512 wait");
  CHECK((refused.headers.count("retry-after") == 1) == (one.status == 429 || one.status == 503));
  CHECK(refused.headers.count("x-request-id") == 1);
  CHECK(refused.headers.count("x-dsa-instance") == 1);
  engine.refusal.reset();
  TokenDelta last = LastDelta(FinishReason::kError);
  last.error = Error{one.code, "it broke"};
  const Reply stream =
      AskFake(serving, engine, Post(kCompletions, R"({"prompt": [1], "stream": true})"),
              {Delta("a", {1}), last});
  CHECK(stream.status == 200);
  const std::vector<Json> events = ParseEvents(stream.body, testing::StreamEnd::kFailed);
  REQUIRE(events.size() == 2);
  CHECK(events[0]["choices"][0]["text"] == "a");
  CHECK(events[1]["error"]["message"] == "it broke");
}

TEST_CASE("text and tokens go both ways", "[http]") {
  FakeEngine engine;
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  const auto ask = [&](std::string_view path, const std::string& body) {
    return Exchange(serving.port(), Post(path, body));
  };
  const Json tokens = MustParse(ask("/tokenize", R"({"model": "m", "prompt": "Grüße"})").body);
  CHECK(tokens["count"] == tokens["tokens"].size());
  CHECK(tokens["max_model_len"] == 4096);
  const Json text = MustParse(ask("/detokenize", Json{{"tokens", tokens["tokens"]}}.dump()).body);
  CHECK(text["prompt"] == "Grüße");
  const Json chat =
      MustParse(ask("/tokenize", R"({"messages": [{"role": "user", "content": "Grüße"}]})").body);
  CHECK(chat["count"].get<int>() > tokens["count"].get<int>());
  const auto told = [&](const std::string& role) {
    return ask("/tokenize", R"({"messages": [{"role": ")" + role + R"(", "content": "Be brief."},
                                            {"role": "user", "content": "x"}]})");
  };
  CHECK(told("developer").status == 200);
  CHECK(told("developer").body == told("system").body);  // as OpenAI has it
  CHECK(ErrorMessage(ask("/tokenize", "{}")).rfind("prompt: missing", 0) == 0);
  CHECK(ErrorMessage(ask("/detokenize", R"({"tokens": [-1]})")) ==
        "tokens[0]: -1 is not in [0, 129280)");
  std::string values = R"({"tokens": [0)";
  for (int i = 1; i < 262'143; ++i) {
    values += ",0";
  }
  CHECK(ask("/detokenize", values + "]}").status == 400);
  CHECK(ErrorMessage(ask("/detokenize", values + ",0]}")) ==
        "body: not valid JSON: line 1, column 524298: more than 262144 values");
  // A large text is read by the text workers.
  std::string large;
  for (int i = 0; i < 20'000; ++i) {
    large += "word ";
  }
  const Json many = MustParse(ask("/tokenize", R"({"prompt": ")" + large + "\"}").body);
  CHECK(many["count"].get<int>() > 20'000);
}

}  // namespace
}  // namespace dsa::openai_test
