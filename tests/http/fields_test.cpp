// Fields that OpenAI's, vLLM's and DeepSeek's documentation knows: each works, or is refused by
// name with what it may say, or says what happens anyway.
#include "common/json.h"
#include "tests/http/raw_client.h"
#include "tests/http/serving.h"

#include <string>
#include <string_view>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::fields_test {
namespace {

using testing::Exchange;
using testing::FakeEngine;
using testing::FreePort;
using testing::Get;
using testing::HttpServing;
using testing::Post;
using testing::RawClient;
using testing::Reply;
using testing::SteppedEngine;

constexpr std::string_view kChat = "/v1/chat/completions";
constexpr std::string_view kCompletions = "/v1/completions";
constexpr std::string_view kTokenize = "/tokenize";
constexpr std::string_view kDetokenize = "/detokenize";

struct Said {
  std::string_view path;
  std::string fields;
};

// A body that says what its endpoint needs, and `said`.
std::string BodyOf(const Said& said) {
  const std::string_view least =
      said.path == kDetokenize ? R"("tokens": [5])"
      : said.path == kChat ? R"("max_tokens": 1, "messages": [{"role": "user", "content": "x"}])"
      : said.path == kTokenize ? R"("messages": [{"role": "user", "content": "x"}])"
                               : R"("max_tokens": 1, "prompt": [1])";
  return fmt::format("{{{}, {}}}", least, said.fields);
}

TEST_CASE("a documented field that is not done is refused with what it may say", "[http][fields]") {
  struct Case {
    Said said;
    std::string message;
  };
  const Case cases[] = {
      {{kChat, R"("repetition_detection": {"max_pattern_size": 3})"},
       R"(repetition_detection: not supported yet: {"max_pattern_size": 3} is not null)"},
      {{kCompletions, R"("watermarking": true)"},
       "watermarking: not supported yet: true is not false"},
      {{kCompletions, R"("logprob_token_ids": [5])"},
       R"(logprob_token_ids: not supported yet: [5] is not "" or [] or {})"},
      {{kChat, R"("stream_interval": 4)"}, "stream_interval: not supported yet: 4 is not 1"},
      {{kChat, R"("return_prompt_text": true)"},
       "return_prompt_text: not supported yet: true is not false"},
      {{kChat, R"("return_token_strs": true)"},
       "return_token_strs: not supported yet: true is not false"},
      {{kChat, R"("ec_transfer_params": {})"},
       "ec_transfer_params: not supported yet: {} is not null"},
      {{kChat, R"("verbosity": "low")"}, R"(verbosity: not supported yet: "low" is not "medium")"},
      {{kChat, R"("function_call": {"name": "f"})"},
       R"(function_call: not supported yet: {"name": "f"} is not "none" or "auto")"},
      {{kChat, R"("response_format": {"type": "json_object"})"},
       R"(response_format: not supported yet: {"type": "json_object"} is not {"type": "text"})"},
      {{kChat, R"("thinking_token_budget": 100)"},
       "thinking_token_budget: not supported yet: 100 is not -1"},
      {{kChat, R"("length_penalty": 1.5)"},
       "length_penalty: not supported yet: 1.5 is not 1 or 1.0"},
      {{kChat, R"("prompt": "x")"}, R"(prompt: not supported yet: "x" is not "" or [] or {})"},
      {{kCompletions, R"("messages": [5])"},
       R"(messages: not supported yet: [5] is not "" or [] or {})"},
      {{kCompletions, R"("tools": [{"type": "function"}])"},
       R"(tools: not supported yet: [{"type": "function"}] is not "" or [] or {})"},
      {{kCompletions, R"("tool_choice": "required")"},
       R"(tool_choice: not supported yet: "required" is not "none" or "auto")"},
      {{kCompletions, R"("thinking": {"type": "enabled"})"},
       R"(thinking: not supported yet: {"type": "enabled"} is not {"type": "disabled"})"},
      {{kCompletions, R"("reasoning_effort": "low")"},
       R"(reasoning_effort: not supported yet: "low" is not "none")"},
      {{kCompletions, R"("top_logprobs": 2)"}, "top_logprobs: not supported yet: 2 is not 0"},
      {{kChat, R"("stream": true, "stream_options": {"continuous_usage_stats": true})"},
       "stream_options.continuous_usage_stats: not supported yet: true is not false"},
      {{kChat, R"("stream": true, "stream_options": {"include_obfuscation": true})"},
       "stream_options.include_obfuscation: not supported yet: true is not false"},
      {{kChat, R"("stream": true, "stream_options": {"include_usage": 1})"},
       "stream_options.include_usage: 1 is not true or false"},
      {{kChat, R"("tools": [{"type": "function", "function": {"name": "f", "strict": true}}])"},
       "tools[0].function.strict: not supported yet: true is not false"},
      {{kChat, R"("chat_template_kwargs": {"other": 1})"}, "chat_template_kwargs.other: no such"},
      {{kChat, R"("chat_template_kwargs": {"enable_thinking": 1})"},
       "chat_template_kwargs.enable_thinking: 1 is not true or false"},
      {{kChat, R"("thinking": {"type": "enabled", "budget_tokens": 9})"},
       R"(thinking: {"type": "enabled", "budget_tokens": 9} is not {"type": "enabled"} or)"},
      {{kTokenize, R"("chat_template": "x")"},
       R"(chat_template: not supported yet: "x" is not null)"},
      {{kTokenize, R"("add_special_tokens": true)"}, "add_special_tokens: not supported yet"},
      {{kTokenize, R"("add_generation_prompt": false)"}, "add_generation_prompt: must be"},
      {{kTokenize, R"("prompt": "y")"}, R"(prompt: not supported yet: "y" is not)"},
      {{kTokenize, R"("return_token_strs": 1)"}, "return_token_strs: 1 is not true or false"},
      {{kDetokenize, R"("skip_special_tokens": false)"}, "skip_special_tokens: not supported yet"},
  };
  FakeEngine engine;
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  RawClient client(serving.port());
  for (const Case& one : cases) {
    CAPTURE(one.said.fields);
    client.Send(Post(one.said.path, BodyOf(one.said)));
    const std::optional<Reply> reply = client.Read();
    REQUIRE(reply);
    CHECK(reply->status == 400);
    const Json error = ParseJson(reply->body, "answer").value()["error"];
    CHECK(error["message"].get<std::string>().substr(0, one.message.size()) == one.message);
    CHECK(error["param"] == one.message.substr(0, one.message.find(':')));
  }
  CHECK(engine.submitted() == 0);
}

TEST_CASE("a documented field that says what happens anyway is taken", "[http][fields]") {
  const Said taken[] = {
      {kChat, R"("verbosity": "medium", "function_call": "none", "store": false)"},
      {kChat, R"("top_logprobs": 0, "logprobs": false)"},
      {kChat, R"("top_logprobs": 0)"},
      {kChat, R"("stream": true, "stream_options": {"include_usage": null})"},
      {kChat, R"("stream": true, "stream_options": {"include_obfuscation": false, "new": 7})"},
      {kChat, R"("chat_template_kwargs": {"thinking": null, "other": null})"},
      {kChat, R"("thinking": {"type": "disabled", "budget_tokens": null})"},
      {kChat, R"("session_id": "s", "return_mm_kwargs": false, "truncation_side": "left")"},
      {kChat, R"("thinking_token_budget": -1, "stream_interval": 1, "length_penalty": 1.0)"},
      {kChat, R"("watermarking": null, "repetition_detection": null, "prompt": "")"},
      {kChat, R"("modalities": ["text"], "response_format": {"type": "text"})"},
      {kCompletions, R"("tools": [], "tool_choice": "none", "thinking": {"type": "disabled"})"},
      {kCompletions, R"("messages": null, "top_logprobs": 0, "reasoning_effort": "none")"},
      {kDetokenize, R"("skip_special_tokens": true)"},
  };
  SteppedEngine engine;
  HttpServing serving(engine.loop(), &testing::ChatTokenizer(), FreePort());
  for (const Said& one : taken) {
    CAPTURE(one.fields);
    const Reply reply = Exchange(serving.port(), Post(one.path, BodyOf(one)));
    CAPTURE(reply.body);
    CHECK(reply.status == 200);
  }
}

TEST_CASE("unknown keys inside a field are refused where the server is strict", "[http][fields]") {
  FakeEngine engine;
  HttpServerConfig config = FreePort();
  config.strict = true;
  HttpServing serving(engine, nullptr, config);
  const Reply reply =
      Exchange(serving.port(),
               Post(kCompletions,
                    BodyOf({kCompletions, R"("stream": true, "stream_options": {"new": 7})"})));
  CHECK(reply.status == 400);
  CHECK(reply.body.find("stream_options.new: no such field") != std::string::npos);
}

std::string Ids(const HttpServing& serving, const std::string& body) {
  const Reply reply = Exchange(serving.port(), Post(kTokenize, body));
  CAPTURE(reply.body);
  REQUIRE(reply.status == 200);
  return ParseJson(reply.body, "answer").value()["tokens"].dump();
}

TEST_CASE("a chat is tokenized as it is answered", "[http][fields]") {
  FakeEngine engine;
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  const auto chat = [](const std::string& more) {
    return R"({"messages": [{"role": "user", "content": "x"}])" + more + "}";
  };
  const std::string plain = Ids(serving, chat(""));
  const std::string thinking = Ids(serving, chat(R"(, "thinking": {"type": "enabled"})"));
  CHECK(thinking != plain);
  for (const char* way : {R"(, "chat_template_kwargs": {"thinking": true})",
                          R"(, "reasoning_effort": "max")", R"(, "reasoning_effort": "high")"}) {
    CHECK(Ids(serving, chat(way)) == thinking);
  }
  CHECK(Ids(serving, chat(R"(, "add_generation_prompt": true)")) == plain);
  // What an answer goes on from is not ended.
  const auto begun = [](const std::string& last, const std::string& more) {
    return R"({"messages": [{"role": "user", "content": "x"},
                            {"role": "assistant", "content": "y")" +
           last + "}]" + more + "}";
  };
  const std::string prefix = Ids(serving, begun(R"(, "prefix": true)", ""));
  CHECK(prefix != Ids(serving, begun("", "")));
  CHECK(Ids(serving, begun("", R"(, "continue_final_message": true)")) == prefix);
  // Whether a schema is kept is nothing that the model hears of.
  const auto tool = [&](const std::string& more) {
    return chat(R"(, "tools": [{"type": "function", "function": {"name": "f")" + more + "}}]");
  };
  CHECK(Ids(serving, tool("")) != plain);
  CHECK(Ids(serving, tool(R"(, "strict": false)")) == Ids(serving, tool("")));
  CHECK(Ids(serving, tool(R"(, "strict": null)")) == Ids(serving, tool("")));
}

TEST_CASE("an answer goes on within the reasoning that it is given", "[http][fields]") {
  FakeEngine engine;
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  const auto body = [](const char* thinking) {
    return fmt::format(R"({{"messages": [{{"role": "user", "content": "x"}},
                           {{"role": "assistant", "reasoning_content": "why", "prefix": true}}],
                          "thinking": {{"type": "{}"}}}})",
                       thinking);
  };
  RawClient client(serving.port());
  client.Send(Post(kChat, body("enabled")));
  const auto submitted = engine.Wait(0);
  REQUIRE(submitted);
  submitted->sink->OnDelta(testing::Delta(" because</think>Hello", {10, 11, 12}));
  submitted->sink->OnDelta(testing::LastDelta(FinishReason::kStop));
  const Json answer = ParseJson(client.Read().value_or(Reply{}).body, "answer").value();
  CHECK(answer["choices"][0]["message"]["reasoning_content"] == " because");
  CHECK(answer["choices"][0]["message"]["content"] == "Hello");
  client.Send(Post(kChat, body("disabled")));
  CHECK(client.Read().value_or(Reply{}).body.find("messages[1].content: a message that is") !=
        std::string::npos);
}

TEST_CASE("tokens come with their texts where they are asked for", "[http][fields]") {
  FakeEngine engine;
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  const auto ask = [&](std::string_view path, const std::string& body) {
    return Exchange(serving.port(), Post(path, body));
  };
  const Json with =
      ParseJson(ask(kTokenize, R"({"prompt": "Hello world", "return_token_strs": true})").body, "a")
          .value();
  CHECK(with["token_strs"] == Json({"Hello", " world"}));
  CHECK(with["count"] == 2);
  CHECK(ask(kTokenize, R"({"prompt": "Hello", "return_token_strs": false})").body.find("strs") ==
        std::string::npos);
  for (const char* body : {"{}", R"({"tokens": null})"}) {
    const Reply missing = ask(kDetokenize, body);
    CHECK(missing.status == 400);
    CHECK(missing.body.find("tokens: missing") != std::string::npos);
  }
  CHECK(ask(kDetokenize, R"({"tokens": []})").body == R"({"prompt":""})");
}

TEST_CASE("a model's name may be escaped in a path", "[http][fields]") {
  FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  serving.context().model.id = "some/model 1";
  const auto get = [&](const char* path) { return Exchange(serving.port(), Get(path)); };
  CHECK(get("/v1/models/some%2Fmodel%201").status == 200);
  CHECK(get("/v1/models/some%2fmodel%201").body.find(R"("id":"some/model 1")") !=
        std::string::npos);
  CHECK(get("/v1/models/some/model%201").status == 200);
  CHECK(get("/v1/models/").body.find(R"("object":"list")") != std::string::npos);
  for (const char* other : {"/v1/models/some%2", "/v1/models/%", "/v1/models/%zz",
                            "/v1/models/some%2Fmodel%201%00", "/v1/models/some%2Fmodel"}) {
    CAPTURE(other);
    CHECK(get(other).status == 404);
  }
}

TEST_CASE("a body that is compressed is not read", "[http][fields]") {
  FakeEngine engine;
  HttpServing serving(engine, &testing::ChatTokenizer(), FreePort());
  const auto ask = [&](const char* encoding) {
    return Exchange(serving.port(), Post(kDetokenize, R"({"tokens": [5]})",
                                         fmt::format("Content-Encoding: {}\r\n", encoding)));
  };
  const Reply refused = ask("gzip");
  CHECK(refused.status == 415);
  CHECK(refused.body.find(R"(Content-Encoding: \"gzip\" is not identity)") != std::string::npos);
  CHECK(ask("identity").status == 200);
}

}  // namespace
}  // namespace dsa::fields_test
