// Laws of translation: every field is used or refused, every border holds.
#include "server/grpc/v1/translate.h"

#include "proto/admin.pb.h"
#include "proto/model.pb.h"
#include "server/grpc/wire.h"
#include "tests/api/fake_engine.h"

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <google/protobuf/text_format.h>

namespace dsa::translate_test {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

constexpr std::int64_t kContext = 16;
constexpr std::int32_t kVocabulary = 100;

ServedModel SmallModel() {
  ServedModel model;
  model.id = "m";
  model.context_length = kContext;
  model.vocabulary = kVocabulary;
  model.max_tokens_default = 8;
  return model;
}

// A model with ids only.
struct World {
  testing::FakeEngine engine;
  SteadyClock clock;
  ServiceContext context{.engine = engine,
                         .clock = clock,
                         .tokenizer = nullptr,
                         .model = SmallModel(),
                         .server = {},
                         .slow_client = {},
                         .draining = false,
                         .request_ids = {},
                         .open_calls = {},
                         .workers = {}};
};

template <typename Message>
Result<Generation> Translate(const Message& message, const ServiceContext& context) {
  Ask ask;
  DSA_RETURN_IF_ERROR(ToAsk(message, ask));
  return Resolve(std::move(ask), kFieldNames, context);
}

v1::CompletionRequest Valid() {
  v1::CompletionRequest request;
  for (const int id : {1, 2, 3}) {
    request.mutable_token_ids()->add_ids(id);
  }
  return request;
}

// Everything that a completion asks the engine for, but for a drawn seed.
std::string Describe(const Generation& generation) {
  const Request& r = generation.prompts.front().request;
  std::string text = fmt::format(
      "t={} p={} mp={} k={} lp={} max={} min={} ie={} salt={} prio={} report={} cost={} "
      "thinking={}",
      r.sampling.temperature, r.sampling.top_p, r.sampling.min_p, r.sampling.top_k,
      r.sampling.top_logprobs.value_or(-1), r.stop.max_tokens, r.stop.min_tokens, r.stop.ignore_end,
      r.cache_salt, r.priority, static_cast<int>(generation.logprobs),
      static_cast<int>(generation.cost), generation.format.thinking);
  text += fmt::format(" n={} pl={}", generation.answers, r.prompt_logprobs.value_or(-1));
  text += fmt::format(" fp={} pp={} rp={}", r.sampling.frequency_penalty,
                      r.sampling.presence_penalty, r.sampling.repetition_penalty);
  for (const LogitBias& bias : r.sampling.logit_bias) {
    text += fmt::format(" bias{}={}", Value(bias.id), bias.add);
  }
  for (const TokenId id : r.prompt) {
    text += fmt::format(" {}", Value(id));
  }
  for (const TokenId id : r.stop.stop_ids) {
    text += fmt::format(" stop{}", Value(id));
  }
  for (const std::string& stop : r.stop.stop_strings) {
    text += fmt::format(" stop:{}", stop);
  }
  return text;
}

struct BadValue {
  const char* set;      // text format, merged into a valid request
  const char* message;  // how the error begins
};

}  // namespace

TEST_CASE("values beyond a border are refused by name", "[api][translate]") {
  const auto bad = GENERATE(values<BadValue>({
      {"sampling { temperature: -0.001 }", "sampling.temperature: -0.001 is not in [0, 2]"},
      {"sampling { temperature: 2.001 }", "sampling.temperature: 2.001 is not in [0, 2]"},
      {"sampling { temperature: nan }", "sampling.temperature: nan is not in [0, 2]"},
      {"sampling { temperature: inf }", "sampling.temperature: inf"},
      {"sampling { temperature: -inf }", "sampling.temperature: -inf"},
      {"sampling { temperature: 1e38 }", "sampling.temperature: 1e+38"},
      {"sampling { top_p: 0 }", "sampling.top_p: 0 is not in (0, 1]"},
      {"sampling { top_p: 1.001 }", "sampling.top_p: 1.001 is not in (0, 1]"},
      {"sampling { top_p: -1 }", "sampling.top_p: -1"},
      {"sampling { top_p: nan }", "sampling.top_p: nan"},
      {"sampling { min_p: -0.001 }", "sampling.min_p: -0.001 is not in [0, 1]"},
      {"sampling { min_p: 1.001 }", "sampling.min_p: 1.001"},
      {"sampling { min_p: nan }", "sampling.min_p: nan"},
      {"sampling { top_k: -1 }", "sampling.top_k: -1 is not in [0, 100]"},
      {"sampling { top_k: 101 }", "sampling.top_k: 101 is not in [0, 100]"},
      {"sampling { top_k: 4294967296 }", "sampling.top_k: 4294967296"},
      {"sampling { top_k: -9223372036854775808 }", "sampling.top_k: -9223372036854775808"},
      {"sampling { frequency_penalty: 2.001 }",
       "sampling.frequency_penalty: 2.001 is not in [-2, 2]"},
      {"sampling { frequency_penalty: nan }", "sampling.frequency_penalty: nan"},
      {"sampling { presence_penalty: -2.001 }",
       "sampling.presence_penalty: -2.001 is not in [-2, 2]"},
      {"sampling { repetition_penalty: 0 }", "sampling.repetition_penalty: 0 is not in (0, 10]"},
      {"sampling { repetition_penalty: 10.5 }", "sampling.repetition_penalty: 10.5"},
      {"sampling { repetition_penalty: nan }", "sampling.repetition_penalty: nan"},
      {"sampling { logit_bias { key: 100 value: 1 } }",
       "sampling.logit_bias: id 100 is not in [0, 100)"},
      {"sampling { logit_bias { key: -1 value: 0 } }", "sampling.logit_bias: id -1"},
      {"sampling { logit_bias { key: 4294967296 value: 1 } }",
       "sampling.logit_bias: id 4294967296"},
      {"sampling { logit_bias { key: 5 value: 100.5 } }",
       "sampling.logit_bias[5]: 100.5 is not in [-100, 100]"},
      {"sampling { logit_bias { key: 5 value: nan } }", "sampling.logit_bias[5]: nan"},
      {"sampling { n: 0 }", "sampling.n: 0 is not in [1, 16]"},
      {"sampling { n: 17 }", "sampling.n: 17 is not in [1, 16]"},
      {"sampling { n: -9223372036854775808 }", "sampling.n: -9223372036854775808"},
      {"stop { max_tokens: 0 }", "stop.max_tokens: 0 is not in [1, 13]"},
      {"stop { max_tokens: -1 }", "stop.max_tokens: -1"},
      {"stop { max_tokens: 14 }", "stop.max_tokens: 14 is not in [1, 13]: the context has 16"},
      {"stop { max_tokens: 9223372036854775807 }", "stop.max_tokens: 9223372036854775807"},
      {"stop { min_tokens: -1 }", "stop.min_tokens: -1 is not in [0, 8]"},
      {"stop { min_tokens: 9 }", "stop.min_tokens: 9 is not in [0, 8]"},
      {"stop { stop: '' }", "stop.stop[0]: 0 bytes"},
      {"stop { stop_token_ids: -1 }", "stop.stop_token_ids[0]: -1 is not in [0, 100)"},
      {"stop { stop_token_ids: 100 }", "stop.stop_token_ids[0]: 100"},
      {"stop { stop_token_ids: 4294967296 }", "stop.stop_token_ids[0]: 4294967296"},
      {"token_ids { ids: 100 }", "token_ids.ids[3]: 100 is not in [0, 100)"},
      {"token_ids { ids: -1 }", "token_ids.ids[3]: -1"},
      {"token_ids { ids: 4294967297 }", "token_ids.ids[3]: 4294967297"},
      {"top_logprobs: 1", "top_logprobs: 1 needs logprobs"},
      {"logprobs: true top_logprobs: 21", "top_logprobs: 21 is not in [0, 20]"},
      {"logprobs: true top_logprobs: -1", "top_logprobs: -1"},
      {"prompt_logprobs: 21", "prompt_logprobs: 21 is not in [0, 20]"},
      {"prompt_logprobs: 0 stop { max_tokens: -1 }", "stop.max_tokens: -1 is not in [0, 13]"},
      {"priority: 1001", "priority: 1001 is not in [-1000, 1000]"},
      {"priority: -1001", "priority: -1001"},
      {"parse_special: true", "parse_special: only for text"},
      {"add_bos: false", "add_bos: only for text"},
  }));
  World world;
  v1::CompletionRequest request = Valid();
  v1::CompletionRequest change;
  REQUIRE(google::protobuf::TextFormat::ParseFromString(bad.set, &change));
  request.MergeFrom(change);
  CAPTURE(bad.set);
  const Result<Generation> result = Translate(request, world.context);
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().code == ErrorCode::kInvalidArgument);
  CHECK(result.error().message.rfind(bad.message, 0) == 0);
  CAPTURE(result.error().message);
}

TEST_CASE("values at a border are taken", "[api][translate]") {
  const auto* set =
      GENERATE("sampling { temperature: 0 }", "sampling { temperature: 2 }",
               "sampling { temperature: -0 }", "sampling { top_p: 1e-30 }", "sampling { top_p: 1 }",
               "sampling { min_p: 1 }", "sampling { top_k: 100 }", "sampling { n: 16 }",
               "sampling { frequency_penalty: -2 presence_penalty: 2 repetition_penalty: 10 }",
               "sampling { logit_bias { key: 99 value: -100 } logit_bias { key: 0 value: 100 } }",
               "sampling { seed: 18446744073709551615 }", "stop { max_tokens: 1 }",
               "stop { max_tokens: 13 }", "stop { min_tokens: 8 }", "stop { stop_token_ids: 99 }",
               "token_ids { ids: 99 }", "token_ids { ids: 0 }", "logprobs: true top_logprobs: 20",
               "logprobs: true", "priority: 1000", "priority: -1000", "model: 'm'");
  World world;
  v1::CompletionRequest request = Valid();
  v1::CompletionRequest change;
  REQUIRE(google::protobuf::TextFormat::ParseFromString(set, &change));
  request.MergeFrom(change);
  CAPTURE(set);
  CHECK(Translate(request, world.context).ok());
}

TEST_CASE("lists and strings have their limits", "[api][translate]") {
  World world;
  v1::CompletionRequest request = Valid();
  for (int i = 0; i < 16; ++i) {
    request.mutable_stop()->add_stop(std::string(i < 7 ? 256 : 1, 'x'));
  }
  for (int i = 0; i < 64; ++i) {
    request.mutable_stop()->add_stop_token_ids(i);
  }
  request.set_cache_salt(std::string(256, 's'));
  CHECK(Translate(request, world.context).ok());
  v1::CompletionRequest more = request;
  more.mutable_stop()->add_stop("x");
  CHECK_FALSE(Translate(more, world.context).ok());
  more = request;
  more.mutable_stop()->set_stop(15, std::string(257, 'x'));
  CHECK_FALSE(Translate(more, world.context).ok());
  more = request;
  more.mutable_stop()->set_stop(15, std::string(256, 'x'));
  CHECK_FALSE(Translate(more, world.context).ok());  // more than 2048 bytes together
  more = request;
  more.mutable_stop()->add_stop_token_ids(1);
  CHECK_FALSE(Translate(more, world.context).ok());
  more = request;
  more.mutable_cache_salt()->push_back('s');
  CHECK_FALSE(Translate(more, world.context).ok());
}

TEST_CASE("log-probabilities of a prompt are bounded, candidates included", "[api][translate]") {
  World world;
  world.context.slow_client.logprobs_max = 6;
  v1::CompletionRequest request = Valid();
  request.set_prompt_logprobs(1);
  CHECK(Translate(request, world.context).ok());
  request.set_prompt_logprobs(2);
  CHECK(Translate(request, world.context).error().message ==
        "prompt_logprobs: 2 with a prompt of 3 tokens is 9 log-probabilities, at most 6");
  request.set_prompt_logprobs(0);
  request.mutable_sampling()->set_n(2);
  CHECK(Translate(request, world.context).ok());
  request.mutable_sampling()->set_n(3);
  CHECK(
      Translate(request, world.context).error().message ==
      "prompt_logprobs: 0 with a prompt of 3 tokens and 3 answers is 9 log-probabilities, at most "
      "6");
  request.mutable_sampling()->set_n(2);
  request.mutable_stop()->set_max_tokens(0);
  request.mutable_stop()->clear_min_tokens();
  CHECK(Translate(request, world.context).ok());
}

TEST_CASE("the prompt leaves room for an answer", "[api][translate]") {
  World world;
  v1::CompletionRequest request;
  CHECK(Translate(request, world.context).error().message.rfind("prompt: missing", 0) == 0);
  request.mutable_token_ids();
  CHECK(Translate(request, world.context).error().message.rfind("prompt: empty", 0) == 0);
  for (std::int64_t i = 0; i < kContext - 1; ++i) {
    request.mutable_token_ids()->add_ids(5);
  }
  const Result<Generation> fits = Translate(request, world.context);
  REQUIRE(fits.ok());
  CHECK(fits.value().prompts.front().request.stop.max_tokens == 1);  // what the context leaves
  request.mutable_token_ids()->add_ids(5);
  CHECK(
      Translate(request, world.context).error().message.rfind("prompt: 16 tokens, at most 15", 0) ==
      0);
  CHECK(Translate(Valid(), world.context).value().prompts.front().request.stop.max_tokens ==
        8);  // the cap
}

TEST_CASE("an unknown model is not found, and chat needs a tokenizer", "[api][translate]") {
  World world;
  v1::CompletionRequest request = Valid();
  request.set_model("m2\n");
  const Error error = Translate(request, world.context).error();
  CHECK(error.code == ErrorCode::kNotFound);
  CHECK(error.message == "model: \"m2\\x0a\" is not served; \"m\" is");
  v1::ChatRequest chat;
  chat.add_messages()->set_role(v1::ROLE_USER);
  CHECK(Translate(chat, world.context).error().code == ErrorCode::kFailedPrecondition);
}

// Values that make a difference, by field; a field without one must be refused.
const std::map<std::string, std::string>& CompletionValues() {
  static const std::map<std::string, std::string> values = {
      {"dsa.v1.CompletionRequest.model", "model: 'other'"},
      {"dsa.v1.CompletionRequest.text", "text: 'x'"},
      {"dsa.v1.CompletionRequest.token_ids", "token_ids { ids: 9 }"},
      {"dsa.v1.TokenIds.ids", "token_ids { ids: 9 }"},
      {"dsa.v1.CompletionRequest.parse_special", "parse_special: true"},
      {"dsa.v1.CompletionRequest.add_bos", "add_bos: true"},
      {"dsa.v1.CompletionRequest.sampling", "sampling { top_k: 3 }"},
      {"dsa.v1.CompletionRequest.stop", "stop { max_tokens: 3 }"},
      {"dsa.v1.CompletionRequest.report_cost", "report_cost: true"},
      {"dsa.v1.CompletionRequest.logprobs", "logprobs: true"},
      {"dsa.v1.CompletionRequest.top_logprobs", "top_logprobs: 2"},
      {"dsa.v1.CompletionRequest.prompt_logprobs", "prompt_logprobs: 2"},
      {"dsa.v1.CompletionRequest.cache_salt", "cache_salt: 's'"},
      {"dsa.v1.CompletionRequest.priority", "priority: 4"},
      {"dsa.v1.SamplingParams.temperature", "sampling { temperature: 0.5 }"},
      {"dsa.v1.SamplingParams.top_p", "sampling { top_p: 0.5 }"},
      {"dsa.v1.SamplingParams.top_k", "sampling { top_k: 3 }"},
      {"dsa.v1.SamplingParams.min_p", "sampling { min_p: 0.5 }"},
      {"dsa.v1.SamplingParams.frequency_penalty", "sampling { frequency_penalty: 0.5 }"},
      {"dsa.v1.SamplingParams.presence_penalty", "sampling { presence_penalty: -1 }"},
      {"dsa.v1.SamplingParams.repetition_penalty", "sampling { repetition_penalty: 1.1 }"},
      {"dsa.v1.SamplingParams.logit_bias", "sampling { logit_bias { key: 1 value: 2 } }"},
      {"dsa.v1.SamplingParams.n", "sampling { n: 2 }"},
      {"dsa.v1.CompletionRequest.response_format", "response_format { }"},
      {"dsa.v1.StopConditions.max_tokens", "stop { max_tokens: 3 }"},
      {"dsa.v1.StopConditions.min_tokens", "stop { min_tokens: 3 }"},
      {"dsa.v1.StopConditions.ignore_eos", "stop { ignore_eos: true }"},
      {"dsa.v1.StopConditions.stop", "stop { stop: 'x' }"},
      {"dsa.v1.StopConditions.stop_token_ids", "stop { stop_token_ids: 3 }"},
  };
  return values;
}

// Fields whose use other tests show: what the call itself uses, and what only chat has.
const std::set<std::string>& UsedElsewhere() {
  static const std::set<std::string> fields = {
      "dsa.v1.CompletionRequest.request_id",
      "dsa.v1.SamplingParams.seed",
      "dsa.v1.ResponseFormat.type",  // inside a refused field
      "dsa.v1.ResponseFormat.json_schema",
      "dsa.v1.SamplingParams.LogitBiasEntry.key",
      "dsa.v1.SamplingParams.LogitBiasEntry.value",
      "dsa.v1.ChatRequest.model",
      "dsa.v1.ChatRequest.messages",
      "dsa.v1.ChatRequest.tools",
      "dsa.v1.ChatRequest.thinking",
      "dsa.v1.ChatRequest.sampling",
      "dsa.v1.ChatRequest.stop",
      "dsa.v1.ChatRequest.report_cost",
      "dsa.v1.ChatRequest.logprobs",
      "dsa.v1.ChatRequest.top_logprobs",
      "dsa.v1.ChatRequest.request_id",
      "dsa.v1.ChatRequest.cache_salt",
      "dsa.v1.ChatRequest.priority",
      "dsa.v1.Message.role",
      "dsa.v1.Message.content",
      "dsa.v1.Message.reasoning_content",
      "dsa.v1.Message.tool_calls",
      "dsa.v1.Message.tool_call_id",
      "dsa.v1.Message.prefix",
      "dsa.v1.ToolCall.id",
      "dsa.v1.ToolCall.name",
      "dsa.v1.ToolCall.arguments",
      "dsa.v1.Tool.function_json",
      "dsa.v1.Conversation.messages",
      "dsa.v1.Conversation.tools",
      "dsa.v1.Conversation.thinking",
      "dsa.v1.TokenizeRequest.model",
      "dsa.v1.TokenizeRequest.text",
      "dsa.v1.TokenizeRequest.parse_special",
      "dsa.v1.DetokenizeRequest.model",
      "dsa.v1.DetokenizeRequest.ids",
      "dsa.v1.CountTokensRequest.model",
      "dsa.v1.CountTokensRequest.text",
      "dsa.v1.CountTokensRequest.conversation",
      "dsa.v1.RenderRequest.model",
      "dsa.v1.RenderRequest.conversation",
      "dsa.v1.GetModelRequest.id",
      "dsa.v1.AbortRequest.request_id",
  };
  return fields;
}

void CollectFields(const Descriptor& message, std::set<std::string>& fields) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    if (fields.insert(field.full_name()).second && field.message_type() != nullptr) {
      CollectFields(*field.message_type(), fields);
    }
  }
}

TEST_CASE("every field of every request is used or refused", "[api][translate]") {
  std::set<std::string> fields;
  for (const google::protobuf::FileDescriptor* file :
       {v1::ChatRequest::descriptor()->file(), v1::CompletionRequest::descriptor()->file(),
        v1::RenderRequest::descriptor()->file(), v1::GetModelRequest::descriptor()->file(),
        v1::AbortRequest::descriptor()->file()}) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        CollectFields(*file->service(s)->method(m)->input_type(), fields);
      }
    }
  }
  REQUIRE(fields.size() > 60);
  const auto& refused = RefusedFields();
  for (const std::string& field : fields) {
    INFO(field);
    const bool is_refused = std::find(refused.begin(), refused.end(), field) != refused.end();
    CHECK(
        (is_refused || CompletionValues().count(field) == 1 || UsedElsewhere().count(field) == 1));
  }
  for (const std::string_view field : refused) {
    INFO(field);
    CHECK(fields.count(std::string(field)) == 1);
  }
}

TEST_CASE("a field that is set makes a difference or an error", "[api][translate]") {
  World world;
  const std::string before = Describe(Translate(Valid(), world.context).value());
  const auto& refused = RefusedFields();
  for (const auto& [field, set] : CompletionValues()) {
    v1::CompletionRequest request = Valid();
    v1::CompletionRequest change;
    REQUIRE(google::protobuf::TextFormat::ParseFromString(set, &change));
    request.MergeFrom(change);
    CAPTURE(field);
    const Result<Generation> result = Translate(request, world.context);
    const bool is_refused = std::find(refused.begin(), refused.end(), field) != refused.end();
    if (is_refused) {
      REQUIRE_FALSE(result.ok());
      CHECK(result.error().code == ErrorCode::kUnimplemented);
      const std::string name = field.substr(field.rfind('.') + 1);
      CHECK(result.error().message.find(name + ": not supported yet") != std::string::npos);
    } else if (result.ok()) {
      CHECK(Describe(result.value()) != before);
    } else {
      CHECK(result.error().code != ErrorCode::kUnimplemented);
    }
  }
}

TEST_CASE("what changes nothing is accepted, whatever field says it", "[api][translate]") {
  World world;
  const std::string before = Describe(Translate(Valid(), world.context).value());
  const auto says = [&](const std::string& set) {
    v1::CompletionRequest request = Valid();
    v1::CompletionRequest change;
    REQUIRE(google::protobuf::TextFormat::ParseFromString(set, &change));
    request.MergeFrom(change);
    const Result<Generation> result = Translate(request, world.context);
    return result.ok() ? Describe(result.value()) : result.error().message;
  };
  for (const char* set :
       {"sampling { frequency_penalty: 0 }", "sampling { presence_penalty: 0 }",
        "sampling { repetition_penalty: 1 }", "sampling { n: 1 }",
        "sampling { logit_bias { key: 1 value: 0 } }", "response_format { type: 'text' }"}) {
    CAPTURE(set);
    CHECK(says(set) == before);
  }
  CHECK(says("response_format { type: 'json\\n' }") ==
        "response_format: not supported yet: the type \"json\\x0a\" is not \"text\"");
  CHECK(says("response_format { }") ==
        "response_format: not supported yet: the type \"\" is not \"text\"");
  CHECK(says("response_format { type: 'text' json_schema: '{}' }") ==
        "response_format: not supported yet: a json_schema of 2 bytes, none is allowed");
}

TEST_CASE("a seed is the client's or drawn anew", "[api][translate]") {
  World world;
  v1::CompletionRequest request = Valid();
  request.mutable_sampling()->set_seed(0);
  CHECK(Translate(request, world.context).value().prompts.front().request.sampling.seed == 0);
  const auto first =
      Translate(Valid(), world.context).value().prompts.front().request.sampling.seed;
  const auto second =
      Translate(Valid(), world.context).value().prompts.front().request.sampling.seed;
  CHECK(first != second);
}

TEST_CASE("unknown fields are refused or ignored, as the protocol wants", "[api][wire]") {
  std::string bytes = Valid().SerializeAsString();
  bytes += std::string("\xf8\x07\x01", 3);  // field 127
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer buffer(&slice, 1);
  v1::CompletionRequest request;
  CHECK(ParseMessage(buffer, UnknownFields::kRefused, request).error().message ==
        "CompletionRequest: no field has number 127");
  REQUIRE(ParseMessage(buffer, UnknownFields::kIgnored, request).ok());
  CHECK(request.token_ids().ids_size() == 3);
}

TEST_CASE("a request id has its form", "[api]") {
  CHECK(CheckRequestId("a.B_9-", "request_id").ok());
  CHECK(CheckRequestId(std::string(128, 'x'), "f").ok());
  CHECK(CheckRequestId(std::string(129, 'x'), "f").error().message == "f: 129 bytes, at most 128");
  CHECK(CheckRequestId("a\nb", "f").error().message.find("\\x0a") != std::string::npos);
  RequestIds ids;
  RequestIds others;
  const std::string made = ids.Make();
  CHECK(IsRequestId(made));
  CHECK(made != ids.Make());
  CHECK(made != others.Make());
  CHECK(Escape("a\x1b[31m\xc3\xa4\"", 128) == "a\\x1b[31m\\xc3\\xa4\\x22");
  CHECK(Escape(std::string(1000, '\n'), 128).size() == 128);
}

}  // namespace dsa::translate_test
