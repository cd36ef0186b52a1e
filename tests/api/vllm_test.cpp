// Laws of vllm.grpc.engine, in bytes, as a router sends and reads them.
#include "common/file.h"
#include "proto/vllm/engine.pb.h"
#include "server/grpc/vllm/generate.h"
#include "server/grpc/vllm/tokenizer_archive.h"
#include "tests/abuse/raw_http2.h"
#include "tests/api/loopback.h"
#include "tests/api/raw_stream.h"
#include "tests/engine/stepped_engine.h"
#include "tests/log_capture.h"
#include "tests/paths.h"

#include <cstring>
#include <map>
#include <set>

#include <catch2/catch.hpp>
#include <google/protobuf/text_format.h>

namespace dsa::vllm_test {
namespace {

namespace vllm_engine = vllm::grpc::engine;
using testing::Delta;
using testing::LastDelta;
using testing::Loopback;
using testing::RawStream;
using vllm_engine::GenerateRequest;
using vllm_engine::GenerateResponse;

const std::string kService = "/vllm.grpc.engine.VllmEngine/";

GenerateRequest FromText(const std::string& text) {
  GenerateRequest request;
  INFO(text);
  REQUIRE(google::protobuf::TextFormat::ParseFromString(text, &request));
  return request;
}

GenerateRequest ThreeIds(const std::string& more) {
  return FromText("tokenized { input_ids: [7, 8, 9] } " + more);
}

// What a request asks the engine for, or why it is refused.
std::string Asked(const GenerateRequest& request, const ServiceContext& context) {
  Ask ask;
  const Status read = ToAsk(request, ask);
  if (!read.ok()) {
    return read.error().message;
  }
  const Delivery delivery = ask.delivery;
  const bool drawn = !ask.seed;
  const std::string id = ask.request_id;
  Result<Generation> resolved = Resolve(std::move(ask), kVllmFieldNames, context);
  if (!resolved.ok()) {
    return resolved.error().message;
  }
  const Request& r = resolved.value().prompts.front().request;
  std::string text = fmt::format(
      "{} t={} p={} mp={} k={} seed={} lp={} max={} min={} ie={} stream={}", id,
      r.sampling.temperature, r.sampling.top_p, r.sampling.min_p, r.sampling.top_k,
      drawn ? "drawn" : fmt::format("{}", r.sampling.seed), r.sampling.top_logprobs.value_or(-1),
      r.stop.max_tokens, r.stop.min_tokens, r.stop.ignore_end, delivery == Delivery::kStream);
  if (resolved.value().answers != 1 || r.prompt_logprobs) {
    text += fmt::format(" n={} pl={}", resolved.value().answers, r.prompt_logprobs.value_or(-1));
  }
  text += fmt::format(" penalties {} {} {}", r.sampling.frequency_penalty,
                      r.sampling.presence_penalty, r.sampling.repetition_penalty);
  for (const LogitBias& bias : r.sampling.logit_bias) {
    text += fmt::format(" bias {} {}", Value(bias.id), bias.add);
  }
  text += " prompt";
  for (const TokenId one : r.prompt) {
    text += fmt::format(" {}", Value(one));
  }
  for (const TokenId one : r.stop.stop_ids) {
    text += fmt::format(" stop{}", Value(one));
  }
  for (const std::string& stop : r.stop.stop_strings) {
    text += fmt::format(" stop:{}", stop);
  }
  return text;
}

template <typename Response, typename Request>
Response Call(const Loopback& loopback, const std::string& method, const Request& request) {
  RawStream stream(loopback.channel, kService + method, request.SerializeAsString());
  Response response;
  CHECK(stream.Read(response));
  CHECK(stream.Finish().ok());
  return response;
}

std::uint32_t NumberAt(const std::string& bytes, std::size_t offset, int size) {
  std::uint32_t number = 0;
  for (int i = size - 1; i >= 0; --i) {
    number = number << 8U | static_cast<unsigned char>(bytes.at(offset + i));
  }
  return number;
}

// Names and contents by the central directory of an archive.
std::map<std::string, std::string> Unzip(const std::string& archive) {
  std::map<std::string, std::string> files;
  const std::size_t end = archive.size() - 22;
  REQUIRE(NumberAt(archive, end, 4) == 0x06054b50);
  const std::uint32_t entries = NumberAt(archive, end + 10, 2);
  std::size_t at = NumberAt(archive, end + 16, 4);
  CHECK(at + NumberAt(archive, end + 12, 4) == end);
  for (std::uint32_t i = 0; i < entries; ++i) {
    REQUIRE(NumberAt(archive, at, 4) == 0x02014b50);
    const std::uint32_t name_bytes = NumberAt(archive, at + 28, 2);
    const std::size_t local = NumberAt(archive, at + 42, 4);
    CHECK(NumberAt(archive, local, 4) == 0x04034b50);
    CHECK(archive.substr(local + 4, 24) == archive.substr(at + 6, 24));
    const std::string name = archive.substr(at + 46, name_bytes);
    CHECK(archive.substr(local + 30, name_bytes) == name);
    files[name] = archive.substr(local + 30 + name_bytes, NumberAt(archive, at + 24, 4));
    at += 46 + name_bytes;
  }
  return files;
}

}  // namespace

TEST_CASE("vLLM's zeros and absences are off, and not the model's defaults", "[api][vllm]") {
  Loopback loopback(nullptr);
  loopback.context->model.temperature = 0.6F;
  loopback.context->model.top_p = 0.95F;
  loopback.context->model.top_k = 40;
  loopback.context->model.min_p = 0.1F;
  loopback.context->model.repetition_penalty = 1.2F;
  CHECK(Asked(ThreeIds(""), *loopback.context) ==
        " t=1 p=1 mp=0 k=0 seed=drawn lp=-1 max=100 min=0 ie=false stream=false penalties 0 0 1 "
        "prompt 7 8 9");
  CHECK(Asked(ThreeIds("sampling_params { temperature: 0 seed: -1 repetition_penalty: 1 n: 1 "
                       "logit_bias { key: 3 value: 0 } }"),
              *loopback.context) ==
        " t=0 p=1 mp=0 k=0 seed=18446744073709551615 lp=-1 max=100 min=0 ie=false "
        "stream=false penalties 0 0 1 prompt 7 8 9");
}

TEST_CASE("every field of vLLM's request is used, refused, or about text", "[api][vllm]") {
  const Loopback loopback(nullptr);
  // How a field is set so that it must make a difference.
  const std::map<std::string, std::string> values = {
      {"request_id", "request_id: 'r'"},
      {"tokenized", "tokenized { input_ids: 5 }"},
      {"text", "text: 'x'"},
      {"sampling_params", "sampling_params { top_k: 2 }"},
      {"stream", "stream: true"},
      {"kv_transfer_params", "kv_transfer_params {}"},
      {"mm_inputs", "mm_inputs {}"},
      {"kv_transfer_params_json", "kv_transfer_params_json: '{}'"},
      {"data_parallel_rank", "data_parallel_rank: 1"},
      {"media_refs", "media_refs {}"},
      {"extra_mm_inputs", "extra_mm_inputs {}"},
      {"sampling_params.temperature", "sampling_params { temperature: 0.5 }"},
      {"sampling_params.top_p", "sampling_params { top_p: 0.5 }"},
      {"sampling_params.top_k", "sampling_params { top_k: 5 }"},
      {"sampling_params.min_p", "sampling_params { min_p: 0.5 }"},
      {"sampling_params.frequency_penalty", "sampling_params { frequency_penalty: 1 }"},
      {"sampling_params.presence_penalty", "sampling_params { presence_penalty: -1 }"},
      {"sampling_params.repetition_penalty", "sampling_params { repetition_penalty: 1.1 }"},
      {"sampling_params.max_tokens", "sampling_params { max_tokens: 4 }"},
      {"sampling_params.min_tokens", "sampling_params { min_tokens: 4 }"},
      {"sampling_params.stop", "sampling_params { stop: 's' }"},
      {"sampling_params.stop_token_ids", "sampling_params { stop_token_ids: 4 }"},
      {"sampling_params.ignore_eos", "sampling_params { ignore_eos: true }"},
      {"sampling_params.n", "sampling_params { n: 2 }"},
      {"sampling_params.json_schema", "sampling_params { json_schema: '' }"},
      {"sampling_params.regex", "sampling_params { regex: '' }"},
      {"sampling_params.grammar", "sampling_params { grammar: '' }"},
      {"sampling_params.structural_tag", "sampling_params { structural_tag: '' }"},
      {"sampling_params.json_object", "sampling_params { json_object: true }"},
      {"sampling_params.choice", "sampling_params { choice {} }"},
      {"sampling_params.logprobs", "sampling_params { logprobs: 0 }"},
      {"sampling_params.prompt_logprobs", "sampling_params { prompt_logprobs: 0 }"},
      {"sampling_params.seed", "sampling_params { seed: 4 }"},
      {"sampling_params.logit_bias", "sampling_params { logit_bias { key: 1 value: 1 } }"},
      {"sampling_params.truncate_prompt_tokens", "sampling_params { truncate_prompt_tokens: 2 }"}};
  const std::set<std::string> about_text = {"sampling_params.skip_special_tokens",
                                            "sampling_params.spaces_between_special_tokens",
                                            "sampling_params.include_stop_str_in_output"};
  const std::string unset = Asked(ThreeIds(""), *loopback.context);
  const auto check = [&](const google::protobuf::Descriptor& type, const std::string& prefix) {
    for (int i = 0; i < type.field_count(); ++i) {
      const std::string name = prefix + type.field(i)->name();
      if (about_text.count(name) == 1) {
        continue;
      }
      INFO(name);
      REQUIRE(values.count(name) == 1);
      GenerateRequest request = ThreeIds("");
      request.MergeFrom(FromText(values.at(name)));
      const std::string asked = Asked(request, *loopback.context);
      CHECK(asked != unset);
      if (asked.find(": ") != std::string::npos && name != "text") {  // for which a tokenizer lacks
        CHECK(asked.rfind(name, 0) == 0);
      }
    }
  };
  check(*GenerateRequest::descriptor(), "");
  check(*vllm_engine::SamplingParams::descriptor(), "sampling_params.");
  CHECK(Asked(FromText(""), *loopback.context).rfind("input: missing", 0) == 0);
  CHECK(Asked(FromText("tokenized {}"), *loopback.context).rfind("input: empty", 0) == 0);
  CHECK(Asked(ThreeIds("sampling_params { logprobs: 21 }"), *loopback.context) ==
        "sampling_params.logprobs: 21 is not in [0, 20]");
  CHECK(Asked(ThreeIds("sampling_params { n: 17 }"), *loopback.context) ==
        "sampling_params.n: 17 is not in [1, 16]");
  CHECK(Asked(ThreeIds("sampling_params { max_tokens: 0 }"), *loopback.context)
            .rfind("sampling_params.max_tokens: 0 is not in [1, ", 0) == 0);
  CHECK(Asked(ThreeIds("sampling_params { max_tokens: 0 prompt_logprobs: 0 n: 2 }"),
              *loopback.context)
            .find(" n=2 pl=0") != std::string::npos);
}

TEST_CASE("a stream is chunks of what is new, and an end of all", "[api][vllm]") {
  Loopback loopback(nullptr);
  // A field that nobody has, as a newer router may send.
  const std::string bytes =
      ThreeIds("request_id: 'r1' stream: true sampling_params { logprobs: 1 }")
          .SerializeAsString() +
      "\xfa\x3e\x01x";
  RawStream stream(loopback.channel, kService + "Generate", bytes);
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  CHECK(submitted->request.external_id == "r1");
  TokenDelta first = Delta("", {4, 5});
  first.usage.prompt_tokens = 3;
  first.usage.cache_hit_tokens = 1;
  first.tokens[1].top_logprobs = {{.id = TokenId{6}, .logprob = -0.25F}};
  submitted->sink->OnDelta(std::move(first));
  GenerateResponse response;
  REQUIRE(stream.Read(response));
  const vllm_engine::GenerateStreamChunk chunk = response.chunk();
  CHECK(std::vector<std::uint32_t>(chunk.token_ids().begin(), chunk.token_ids().end()) ==
        std::vector<std::uint32_t>{4, 5});
  CHECK(chunk.prompt_tokens() == 3);
  CHECK(chunk.completion_tokens() == 2);
  CHECK(chunk.cached_tokens() == 1);
  CHECK(chunk.index() == 0);
  REQUIRE(chunk.output_logprobs().token_logprobs_size() == 2);
  CHECK(chunk.output_logprobs().token_logprobs(1) == -0.5F);
  CHECK(chunk.output_logprobs().token_ids(1) == 5);
  CHECK(chunk.output_logprobs().top_logprobs(0).values_size() == 0);
  CHECK(chunk.output_logprobs().top_logprobs(1).token_ids(0) == 6);
  CHECK(chunk.output_logprobs().top_logprobs(1).values(0) == -0.25F);
  CHECK(stream.rpc().GetServerInitialMetadata().count("x-request-id") == 1);

  TokenDelta last = LastDelta(FinishReason::kStop);
  last.tokens = Delta("", {1}).tokens;
  submitted->sink->OnDelta(std::move(last));
  REQUIRE(stream.Read(response));
  REQUIRE(response.has_chunk());
  CHECK(response.chunk().token_ids_size() == 1);
  CHECK(response.chunk().completion_tokens() == 1);
  REQUIRE(stream.Read(response));
  const vllm_engine::GenerateComplete complete = response.complete();
  CHECK(std::vector<std::uint32_t>(complete.output_ids().begin(), complete.output_ids().end()) ==
        std::vector<std::uint32_t>{4, 5, 1});
  CHECK(complete.finish_reason() == "stop");
  CHECK(complete.prompt_tokens() == 3);
  CHECK(complete.completion_tokens() == 2);  // as the engine counts
  CHECK(complete.cached_tokens() == 1);
  CHECK(complete.matched_token_id() == 1);
  CHECK_FALSE(complete.has_output_logprobs());
  CHECK_FALSE(stream.Read(response));
  CHECK(stream.Finish().ok());
}

TEST_CASE("without stream there is one message, and it says what stopped", "[api][vllm]") {
  struct Case {
    const char* sampling;
    FinishReason reason;
    std::int32_t last_id;
    const char* finish;
    const char* matched;  // in text format; "": nothing
  };
  const auto one = GENERATE(values<Case>({
      {"", FinishReason::kStop, 1, "stop", "matched_token_id: 1"},
      {"ignore_eos: true stop: 'x'", FinishReason::kStop, 1, "stop", "matched_stop_str: \"x\""},
      {"stop_token_ids: [8, 6]", FinishReason::kStop, 6, "stop", "matched_token_id: 6"},
      {"stop: 'x'", FinishReason::kStop, 6, "stop", "matched_stop_str: \"x\""},
      {"stop: ['x', 'y']", FinishReason::kStop, 6, "stop", ""},
      {"stop: 'x'", FinishReason::kLength, 6, "length", ""},
      {"stop_token_ids: 6", FinishReason::kAborted, 6, "abort", ""},
  }));
  CAPTURE(one.sampling, one.finish);
  Loopback loopback(nullptr);
  RawStream stream(loopback.channel, kService + "Generate",
                   ThreeIds(fmt::format("sampling_params {{ logprobs: 0 {} }}", one.sampling))
                       .SerializeAsString());
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  submitted->sink->OnDelta(Delta("", {4}));
  TokenDelta last = LastDelta(one.reason);
  last.tokens = Delta("", {one.last_id}).tokens;
  submitted->sink->OnDelta(std::move(last));
  GenerateResponse response;
  REQUIRE(stream.Read(response));
  const vllm_engine::GenerateComplete& complete = response.complete();
  CHECK(complete.output_ids_size() == 2);
  CHECK(complete.output_logprobs().token_logprobs_size() == 2);
  CHECK(complete.finish_reason() == one.finish);
  vllm_engine::GenerateComplete matched;
  REQUIRE(google::protobuf::TextFormat::ParseFromString(one.matched, &matched));
  CHECK(complete.matched_stop_case() == matched.matched_stop_case());
  CHECK(complete.matched_token_id() == matched.matched_token_id());
  CHECK(complete.matched_stop_str() == matched.matched_stop_str());
  CHECK_FALSE(stream.Read(response));
  CHECK(stream.Finish().ok());
}

// The end is two messages; the first is longer than what flows to a client that opens no window.
TEST_CASE("a router that leaves amid the last messages ends the call", "[api][vllm]") {
  constexpr std::size_t kTokens = 100'000;
  const std::string kCancel = {0, 0, 0, 8};
  const testing::LogCapture log;
  Loopback loopback(nullptr);
  const std::string message =
      ThreeIds("stream: true request_id: 'leaves-last'").SerializeAsString();
  REQUIRE(message.size() < 128);
  testing::RawConnection client(loopback.server->port());
  REQUIRE(client.Send(
      testing::ClientPreface() +
      testing::Frame(testing::kHeadersFrame, testing::kEndHeadersFlag, 1,
                     testing::RequestHeaders(kService + "Generate")) +
      testing::Frame(testing::kDataFrame, testing::kEndStreamFlag, 1,
                     std::string(4, '\0') + static_cast<char>(message.size()) + message)));
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  TokenDelta last = LastDelta(FinishReason::kLength);
  last.tokens.assign(kTokens, {.id = TokenId{70'000}, .top_logprobs = {}});
  submitted->sink->OnDelta(std::move(last));
  CHECK(log.Lines("leaves-last").empty());
  REQUIRE(client.Send(testing::Frame(testing::kResetFrame, 0, 1, kCancel)));
  CHECK(testing::Eventually([&] { return log.Lines("leaves-last").size() == 1; }));
}

TEST_CASE("a router that leaves, or aborts, ends the request", "[api][vllm]") {
  Loopback loopback(nullptr);
  RawStream leaving(loopback.channel, kService + "Generate",
                    ThreeIds("stream: true").SerializeAsString());
  const auto left = loopback.engine.Wait(0);
  REQUIRE(left);
  leaving.rpc().TryCancel();
  CHECK(testing::Eventually([&] { return left->sink->cancelled(); }));
  left->sink->OnDelta(LastDelta(FinishReason::kCancelled));

  RawStream aborted(loopback.channel, kService + "Generate",
                    ThreeIds("stream: true request_id: 'r2'").SerializeAsString());
  REQUIRE(loopback.engine.Wait(1));
  vllm_engine::AbortRequest abort;
  abort.add_request_ids("nobody's");
  abort.add_request_ids("r2");
  Call<vllm_engine::AbortResponse>(loopback, "Abort", abort);
  GenerateResponse response;
  REQUIRE(aborted.Read(response));
  CHECK(response.complete().finish_reason() == "abort");
  CHECK(aborted.Finish().ok());
}

TEST_CASE("an error before the first token is a status alone, after it behind the chunks",
          "[api][vllm]") {
  Loopback loopback(nullptr);
  RawStream refused(loopback.channel, kService + "Generate",
                    ThreeIds("stream: true sampling_params { regex: '' }").SerializeAsString());
  GenerateResponse response;
  CHECK_FALSE(refused.Read(response));
  const grpc::Status status = refused.Finish();
  CHECK(status.error_code() == grpc::StatusCode::UNIMPLEMENTED);
  CHECK(status.error_message() == "sampling_params.regex: not supported yet");
  CHECK_FALSE(status.error_details().empty());
  CHECK(refused.rpc().GetServerInitialMetadata().empty());

  RawStream broken(loopback.channel, kService + "Generate",
                   ThreeIds("stream: true").SerializeAsString());
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  submitted->sink->OnDelta(Delta("", {4}));
  REQUIRE(broken.Read(response));
  submitted->sink->OnDelta(LastDelta(FinishReason::kError));
  CHECK_FALSE(broken.Read(response));
  CHECK(broken.Finish().error_code() == grpc::StatusCode::INTERNAL);
}

TEST_CASE("a router learns the model, the server and its load", "[api][vllm]") {
  Loopback loopback(nullptr);
  const auto model = Call<vllm_engine::GetModelInfoResponse>(loopback, "GetModelInfo",
                                                             vllm_engine::GetModelInfoRequest());
  CHECK(model.served_model_name() == "m");
  CHECK(model.model_path() == "m");
  CHECK(model.is_generation());
  CHECK(model.max_context_length() == 4096);
  CHECK(model.max_req_input_len() == 4095);
  CHECK(model.vocab_size() == 129280);
  CHECK(model.model_type() == "deepseek_v32");
  CHECK(model.eos_token_ids(0) == 1);
  CHECK(model.default_sampling_params_json() ==
        R"({"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1})");
  const auto server = Call<vllm_engine::GetServerInfoResponse>(loopback, "GetServerInfo",
                                                               vllm_engine::GetServerInfoRequest());
  CHECK(server.data_parallel_size() == 1);
  CHECK(server.active_requests() == 3);
  CHECK(server.kv_engine_id() == loopback.context->server.instance);
  const auto loads =
      Call<vllm_engine::GetLoadsResponse>(loopback, "GetLoads", vllm_engine::GetLoadsRequest());
  REQUIRE(loads.loads_size() == 1);
  CHECK(loads.loads(0).num_waiting_reqs() == 3);
  CHECK(loads.timestamp().size() == std::strlen("2026-11-28T02:00:00Z"));
  const auto health = [&] {
    return Call<vllm_engine::HealthCheckResponse>(loopback, "HealthCheck",
                                                  vllm_engine::HealthCheckRequest());
  };
  CHECK(health().healthy());
  loopback.context->draining = true;
  CHECK_FALSE(health().healthy());
  for (const char* method : {"Embed", "SubscribeKvEvents"}) {
    RawStream stream(loopback.channel, kService + method, "");
    GenerateResponse none;
    CHECK_FALSE(stream.Read(none));
    const grpc::Status status = stream.Finish();
    CHECK(status.error_code() == grpc::StatusCode::UNIMPLEMENTED);
    CHECK_FALSE(status.error_details().empty());
    CHECK(stream.HasTrailer("x-dsa-instance"));
  }
}

TEST_CASE("the tokenizer's files come as an archive in pieces", "[api][vllm]") {
  Loopback loopback(nullptr);
  {
    RawStream stream(loopback.channel, kService + "GetTokenizer", "");
    smg::grpc::common::GetTokenizerChunk none;
    CHECK_FALSE(stream.Read(none));
    CHECK(stream.Finish().error_code() == grpc::StatusCode::FAILED_PRECONDITION);
  }
  const std::string folder = testing::SourcePath("models/dsa-tiny/");
  loopback.context->model.tokenizer_files = {folder + "tokenizer.json",
                                             folder + "tokenizer_config.json"};
  RawStream stream(loopback.channel, kService + "GetTokenizer", "");
  std::string archive;
  std::string sha256;
  int pieces = 0;
  for (smg::grpc::common::GetTokenizerChunk chunk; stream.Read(chunk);) {
    CHECK(sha256.empty());
    CHECK(chunk.data().size() <= 64 * 1024);
    archive += chunk.data();
    sha256 = chunk.sha256();
    ++pieces;
  }
  CHECK(stream.Finish().ok());
  CHECK(pieces > 1);
  CHECK(sha256 == Sha256Hex(archive));
  const std::map<std::string, std::string> files = Unzip(archive);
  CHECK(files.size() == 2);
  constexpr std::int64_t kBytesMax = 16 << 20;
  CHECK(files.at("tokenizer_config.json") ==
        ReadFile(folder + "tokenizer_config.json", kBytesMax).value());
  CHECK(files.at("tokenizer.json") == ReadFile(folder + "tokenizer.json", kBytesMax).value());
}

TEST_CASE("an archive is what other programs write", "[api][vllm]") {
  // Of Python: zipfile.ZipInfo("a", (1980, 1, 1, 0, 0, 0)), stored, "hello".
  const std::string archive = ZipArchive({{.name = "a", .bytes = "hello"}});
  CHECK(NumberAt(archive, 14, 4) == 0x3610a686);  // CRC-32 of "hello"
  CHECK(Unzip(archive) == std::map<std::string, std::string>{{"a", "hello"}});
  CHECK(Unzip(ZipArchive({})).empty());
  CHECK(Sha256Hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace dsa::vllm_test
