// Laws of xai_api, in bytes, as the Python package xai-sdk sends and reads them.
#include "proto/xai/chat.pb.h"
#include "server/grpc/xai/completion.h"
#include "tests/api/loopback.h"
#include "tests/api/raw_stream.h"
#include "tests/paths.h"

#include <cstring>
#include <map>
#include <set>
#include <variant>

#include <catch2/catch.hpp>
#include <google/protobuf/empty.pb.h>
#include <google/protobuf/text_format.h>

namespace dsa::xai_test {
namespace {

using testing::Delta;
using testing::LastDelta;
using testing::Loopback;
using testing::RawStream;
using xai_api::GetCompletionsRequest;

const Tokenizer& XaiTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      std::move(Tokenizer::Load(testing::SourcePath("models/dsa-tiny/tokenizer.json"))).value();
  return *tokenizer;
}

GetCompletionsRequest Hello(const std::string& more) {
  const std::string text = "messages { role: ROLE_USER content { text: 'hi' } } " + more;
  GetCompletionsRequest request;
  INFO(text);
  REQUIRE(google::protobuf::TextFormat::ParseFromString(text, &request));
  return request;
}

// All of an Ask that the protocol can say, or why the request is refused.
std::string XaiAsked(const GetCompletionsRequest& request) {
  Ask ask;
  const Status read = ToAsk(request, ask);
  if (!read.ok()) {
    return read.error().message;
  }
  const auto number = [](const auto& value) {
    return value ? fmt::format("{}", *value) : std::string("-");
  };
  std::string text = fmt::format("{} t={} p={} seed={} max={} lp={} top={} thinking={}", ask.model,
                                 number(ask.temperature), number(ask.top_p), number(ask.seed),
                                 number(ask.max_tokens), ask.logprobs, number(ask.top_logprobs),
                                 std::get<Chat>(ask.prompts.front()).thinking);
  text += ask.n.value_or(1) == 1 ? "" : fmt::format(" n={}", *ask.n);
  if (ask.frequency_penalty.value_or(0.0F) != 0.0F || ask.presence_penalty.value_or(0.0F) != 0.0F) {
    text += fmt::format(" penalties {} {}", number(ask.frequency_penalty),
                        number(ask.presence_penalty));
  }
  for (const std::string& stop : ask.stop) {
    text += " stop:" + stop;
  }
  for (const ChatMessage& message : std::get<Chat>(ask.prompts.front()).messages) {
    text += fmt::format(" [{} {} {} {}", static_cast<int>(message.role),
                        message.content.value_or("none"), message.reasoning_content,
                        message.tool_call_id);
    for (const ToolCall& call : message.tool_calls) {
      text += fmt::format(" {} {} {}", call.id, call.name, call.arguments);
    }
    text += "]";
  }
  for (const std::string& tool : std::get<Chat>(ask.prompts.front()).tools) {
    text += " tool " + tool;
  }
  return text;
}

template <typename Response, typename Request>
Response CallXai(const Loopback& loopback, const std::string& method, const Request& request) {
  RawStream stream(loopback.channel, "/xai_api." + method, request.SerializeAsString());
  Response response;
  CHECK(stream.Read(response));
  CHECK(stream.Finish().ok());
  return response;
}

}  // namespace

TEST_CASE("xAI's messages become turns", "[api][xai]") {
  const std::string plain = "- p=- seed=- max=- lp=false top=- thinking=false";
  CHECK(XaiAsked(Hello("")) == " t=" + plain + " [2 hi  ]");
  CHECK(
      XaiAsked(Hello("messages { role: ROLE_ASSISTANT content { text: '' } reasoning_content: 'r' "
                     "tool_calls { id: 'c' function { name: 'f' arguments: '{}' } } } "
                     "messages { role: ROLE_TOOL tool_call_id: 'c' content { text: 'a' } content "
                     "{ text: 'b' } } messages { role: ROLE_FUNCTION content { text: 'z' } } "
                     "messages { role: ROLE_SYSTEM content { text: 's' } } "
                     "messages { role: ROLE_DEVELOPER content { text: 'd' } }")) ==
      " t=" + plain + " [2 hi  ] [3 none r  c f {}] [4 ab  c] [4 z  ] [0 s  ] [0 d  ]");
  CHECK(XaiAsked(Hello("tools { function { name: 'f' description: 'd' parameters: '{\"a\":1}' } } "
                       "tools { function { name: 'g\"' } }")) ==
        " t=" + plain +
            R"( [2 hi  ] tool {"name": "f", "description": "d", "parameters": {"a": 1}})" +
            R"( tool {"name": "g\"", "description": "", "parameters": )" +
            R"({"type": "object", "properties": {}}})");
  CHECK(XaiAsked(Hello("tools { function { name: 'f' } } tool_choice { mode: TOOL_MODE_NONE }")) ==
        " t=" + plain + " [2 hi  ]");
}

TEST_CASE("no candidates of xAI's are none, whether or not they could be", "[api][xai]") {
  CHECK(XaiAsked(Hello("top_logprobs: 0")) == XaiAsked(Hello("")));
  CHECK(XaiAsked(Hello("logprobs: true top_logprobs: 0")) != XaiAsked(Hello("logprobs: true")));
}

TEST_CASE("every field of xAI's request is used, refused, or changes nothing", "[api][xai]") {
  const std::map<std::string, std::string> values = {
      {"messages", "messages { role: ROLE_USER }"},
      {"model", "model: 'other'"},
      {"frequency_penalty", "frequency_penalty: 1"},
      {"logprobs", "logprobs: true"},
      {"top_logprobs", "top_logprobs: 2"},
      {"max_tokens", "max_tokens: 5"},
      {"n", "n: 2"},
      {"presence_penalty", "presence_penalty: 1"},
      {"response_format", "response_format { format_type: FORMAT_TYPE_JSON_OBJECT }"},
      {"seed", "seed: -1"},
      {"stop", "stop: 's'"},
      {"temperature", "temperature: 0"},
      {"top_p", "top_p: 0.5"},
      {"tools", "tools { function { name: 'f' } }"},
      {"tool_choice", "tool_choice { mode: TOOL_MODE_REQUIRED }"},
      {"reasoning_effort", "reasoning_effort: EFFORT_LOW"},
      {"search_parameters", "search_parameters { mode: 2 }"},
      {"parallel_tool_calls", "parallel_tool_calls: false"},
      {"previous_response_id", "previous_response_id: 'x'"},
      {"store_messages", "store_messages: true"},
      {"use_encrypted_content", "use_encrypted_content: true"},
      {"max_turns", "max_turns: 1"},
      {"agent_count", "agent_count: 1"}};
  const std::set<std::string> nothing = {"user", "include", "service_tier"};
  const auto& type = *GetCompletionsRequest::descriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const std::string name = type.field(i)->name();
    INFO(name);
    if (nothing.count(name) == 1) {
      continue;
    }
    REQUIRE(values.count(name) == 1);
    const std::string asked = XaiAsked(Hello(values.at(name)));
    CHECK(asked != XaiAsked(Hello("")));
    if (asked.find(": not supported yet") != std::string::npos) {
      CHECK(asked.rfind(name, 0) == 0);
    }
  }
  CHECK(XaiAsked(
            Hello("n: 1 frequency_penalty: 0 presence_penalty: 0 parallel_tool_calls: true "
                  "response_format { format_type: FORMAT_TYPE_TEXT } search_parameters { mode: "
                  "1 } tool_choice { mode: TOOL_MODE_AUTO } reasoning_effort: EFFORT_NONE "
                  "agent_count: 0 user: 'u' include: 3 service_tier: 2")) == XaiAsked(Hello("")));
}

TEST_CASE("what xAI's servers do and this one does not is refused by name", "[api][xai]") {
  struct Case {
    const char* text;
    const char* message;
  };
  const auto one = GENERATE(values<Case>({
      {"messages { }", "messages[1].role: 0 is none of"},
      {"messages { role: ROLE_USER content { image_url {} } }", "messages[1].content[0]: not"},
      {"messages { role: ROLE_USER content { file {} } }", "messages[1].content[0]: not"},
      {"messages { role: ROLE_USER content { } }", "messages[1].content[0]: not"},
      {"messages { role: ROLE_ASSISTANT encrypted_content: 'x' }",
       "messages[1].encrypted_content: not"},
      {"messages { role: ROLE_ASSISTANT tool_calls { id: 'x' } }",
       "messages[1].tool_calls[0].function: missing"},
      {"tools { web_search {} }", "tools[0]: a tool other than function: not supported yet"},
      {"tools { mcp {} }", "tools[0]: a tool other than function"},
      {"tools { }", "tools[0]: a tool other than function"},
      {"tools { function { name: 'f' strict: true } }", "tools[0].function.strict: not"},
      {"tools { function { name: 'f' parameters: '{' } }",
       "tools[0].function.parameters: not valid JSON"},
      {"tool_choice { function_name: 'f' }", "tool_choice: a call cannot be forced"},
      {"reasoning_effort: INVALID_EFFORT", "reasoning_effort: 0 is none of"},
  }));
  CAPTURE(one.text);
  CHECK(XaiAsked(Hello(one.text)).rfind(one.message, 0) == 0);
}

TEST_CASE("every chunk says who speaks, of what, and what it cost so far", "[api][xai]") {
  Loopback loopback(&XaiTokenizer());
  // A field that nobody has, as a newer package may send.
  RawStream stream(
      loopback.channel, "/xai_api.Chat/GetCompletionChunk",
      Hello("logprobs: true top_logprobs: 1 n: 1").SerializeAsString() + "\xfa\x3e\x01x");
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  TokenDelta first = Delta("ab", {4});
  first.usage.prompt_tokens = 3;
  first.tokens[0].top_logprobs = {{.id = TokenId{6}, .logprob = -0.25F}};
  submitted->sink->OnDelta(std::move(first));
  std::vector<xai_api::GetChatCompletionChunk> chunks(1);
  REQUIRE(stream.Read(chunks[0]));
  TokenDelta last = LastDelta(FinishReason::kStop);
  last.text = "c";
  submitted->sink->OnDelta(std::move(last));
  for (xai_api::GetChatCompletionChunk chunk; stream.Read(chunk);) {
    chunks.push_back(chunk);
  }
  CHECK(stream.Finish().ok());
  REQUIRE(chunks.size() == 2);
  std::string content;
  for (const xai_api::GetChatCompletionChunk& chunk : chunks) {
    CHECK(chunk.id() == submitted->request.external_id);
    CHECK(chunk.model() == "m");
    CHECK(chunk.created().seconds() > 1'700'000'000);
    CHECK(chunk.created().seconds() == chunks[0].created().seconds());
    CHECK(chunk.system_fingerprint() == loopback.context->server.instance);
    CHECK(chunk.usage().prompt_tokens() == 3);
    REQUIRE(chunk.outputs_size() == 1);
    CHECK(chunk.outputs(0).index() == 0);
    CHECK(chunk.outputs(0).delta().role() == xai_api::ROLE_ASSISTANT);
    content += chunk.outputs(0).delta().content();
  }
  CHECK(content == "abc");
  CHECK(chunks[0].outputs(0).finish_reason() == xai_api::REASON_INVALID);
  CHECK(chunks[1].outputs(0).finish_reason() == xai_api::REASON_STOP);
  CHECK(chunks[1].usage().completion_tokens() == 2);
  CHECK(chunks[1].usage().total_tokens() == 5);
  CHECK(chunks[1].usage().prompt_text_tokens() == 3);
  CHECK(chunks[1].usage().cached_prompt_text_tokens() == 1);
  const xai_api::LogProb& logprob = chunks[0].outputs(0).logprobs().content(0);
  CHECK(logprob.bytes() == XaiTokenizer().Bytes(TokenId{4}));
  CHECK(logprob.logprob() == -0.5F);
  CHECK(logprob.top_logprobs(0).logprob() == -0.25F);
}

TEST_CASE("a whole answer of xAI's has reasoning, tool calls and its reason", "[api][xai]") {
  struct Case {
    FinishReason reason;
    std::int64_t context_length;
    const char* text;
    xai_api::FinishReason told;
  };
  const char* calls =
      "t</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"time\">\n</｜DSML｜invoke>\n"
      "</｜DSML｜function_calls>";
  const auto one = GENERATE_COPY(values<Case>({
      {FinishReason::kStop, 4096, calls, xai_api::REASON_TOOL_CALLS},
      {FinishReason::kStop, 4096, "t</think>x", xai_api::REASON_STOP},
      {FinishReason::kAborted, 4096, "t</think>x", xai_api::REASON_STOP},
      {FinishReason::kLength, 4096, "t</think>x", xai_api::REASON_MAX_LEN},
      {FinishReason::kLength, 5, "t</think>x", xai_api::REASON_MAX_CONTEXT},
  }));
  CAPTURE(one.text, static_cast<int>(one.told));
  Loopback loopback(&XaiTokenizer());
  RawStream stream(loopback.channel, "/xai_api.Chat/GetCompletion",
                   Hello("reasoning_effort: EFFORT_HIGH tools { function { name: 'time' } }")
                       .SerializeAsString());
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  loopback.context->model.context_length = one.context_length;
  TokenDelta said = Delta(one.text, {4, 5, 6});
  said.tokens[0].text_bytes = static_cast<std::int32_t>(std::strlen("t</think>"));
  submitted->sink->OnDelta(std::move(said));
  submitted->sink->OnDelta(LastDelta(one.reason));
  xai_api::GetChatCompletionResponse response;
  REQUIRE(stream.Read(response));
  CHECK(stream.Finish().ok());
  REQUIRE(response.outputs_size() == 1);
  const xai_api::CompletionOutput& output = response.outputs(0);
  CHECK(output.finish_reason() == one.told);
  CHECK(output.message().role() == xai_api::ROLE_ASSISTANT);
  CHECK(output.message().reasoning_content() == "t");
  CHECK(response.usage().reasoning_tokens() == 1);  // of three
  if (one.told == xai_api::REASON_TOOL_CALLS) {
    REQUIRE(output.message().tool_calls_size() == 1);
    const xai_api::ToolCall& call = output.message().tool_calls(0);
    CHECK_FALSE(call.id().empty());
    CHECK(call.type() == xai_api::TOOL_CALL_TYPE_CLIENT_SIDE_TOOL);
    CHECK(call.status() == xai_api::TOOL_CALL_STATUS_COMPLETED);
    CHECK(call.function().name() == "time");
    CHECK(call.function().arguments() == "{}");
  } else {
    CHECK(output.message().content() == "x");
  }
}

TEST_CASE("each of xAI's chunks has the tokens of the reasoning so far", "[api][xai]") {
  Loopback loopback(&XaiTokenizer());
  RawStream stream(loopback.channel, "/xai_api.Chat/GetCompletionChunk",
                   Hello("reasoning_effort: EFFORT_HIGH").SerializeAsString());
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  xai_api::GetChatCompletionChunk chunk;
  const auto reasoning_tokens = [&](const char* text, TokenDelta delta) {
    delta.text = text;
    for (GeneratedToken& token : delta.tokens) {
      token.text_bytes = static_cast<std::int32_t>(delta.text.size() / delta.tokens.size());
    }
    submitted->sink->OnDelta(std::move(delta));
    REQUIRE(stream.Read(chunk));
    return chunk.usage().reasoning_tokens();
  };
  CHECK(reasoning_tokens("ab", Delta("", {4, 5})) == 2);
  CHECK(reasoning_tokens("</think>", Delta("", {6})) == 3);
  CHECK(reasoning_tokens("x", Delta("", {7})) == 3);
  CHECK(reasoning_tokens("", LastDelta(FinishReason::kStop)) == 3);
  CHECK(stream.Finish().ok());
}

TEST_CASE("xAI's client learns the model, its tokens and its key", "[api][xai]") {
  const Loopback loopback(&XaiTokenizer());
  const auto list = CallXai<xai_api::ListLanguageModelsResponse>(
      loopback, "Models/ListLanguageModels", google::protobuf::Empty());
  REQUIRE(list.models_size() == 1);
  CHECK(list.models(0).name() == "m");
  CHECK(list.models(0).max_prompt_length() == 4095);
  xai_api::GetModelRequest wanted;
  wanted.set_name("m");
  CHECK(CallXai<xai_api::LanguageModel>(loopback, "Models/GetLanguageModel", wanted).name() == "m");
  wanted.set_name("x");
  RawStream missing(loopback.channel, "/xai_api.Models/GetLanguageModel",
                    wanted.SerializeAsString());
  CHECK(missing.Finish().error_code() == grpc::StatusCode::NOT_FOUND);
  xai_api::TokenizeTextRequest text;
  text.set_text("What does abandon mean?");
  const auto tokens =
      CallXai<xai_api::TokenizeTextResponse>(loopback, "Tokenize/TokenizeText", text);
  std::string joined;
  for (const xai_api::Token& token : tokens.tokens()) {
    joined += token.token_bytes();
  }
  CHECK(joined == text.text());
  CHECK(CallXai<xai_api::ApiKey>(loopback, "Auth/get_api_key_info", google::protobuf::Empty())
            .acls_size() == 2);
}

}  // namespace dsa::xai_test
