// Laws of the services, over a real connection and a scripted engine.
#include "tests/api/loopback.h"

#include "proto/admin.grpc.pb.h"
#include "proto/chat.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "proto/model.grpc.pb.h"
#include "proto/token.grpc.pb.h"
#include "tests/paths.h"
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <thread>

#include <catch2/catch.hpp>

namespace dsa::loopback_test {
namespace {

using testing::CallRaw;
using testing::Delta;
using testing::LastDelta;
using testing::Loopback;

constexpr const char* kComplete = "/dsa.v1.CompletionService/Complete";

v1::CompletionRequest Valid() {
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_token_ids()->add_ids(8);
  return request;
}

const Tokenizer& TestTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      std::move(Tokenizer::Load(
                    testing::SourcePath("tests/fixtures/deepseek_v3_tokenizer/tokenizer.json")))
          .value();
  return *tokenizer;
}

// A stream whose parts the test reads one by one.
struct Stream {
  explicit Stream(Loopback& loopback) : stub(v1::CompletionService::NewStub(loopback.channel)) {}
  void Start(const v1::CompletionRequest& request) { reader = stub->CompleteStream(&rpc, request); }

  std::unique_ptr<v1::CompletionService::Stub> stub;
  grpc::ClientContext rpc;
  std::unique_ptr<grpc::ClientReader<v1::CompletionStreamResponse>> reader;
};

}  // namespace

TEST_CASE("a stream carries every delta once, in order, and ends with the usage", "[api]") {
  Loopback loopback(nullptr);
  Stream stream(loopback);
  v1::CompletionRequest request = Valid();
  request.set_request_id("mine");
  request.set_logprobs(true);
  request.mutable_sampling()->set_seed(42);
  stream.Start(request);
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  CHECK(submitted->request.external_id == "mine");
  CHECK(submitted->request.sampling.seed == 42);
  CHECK(submitted->request.prompt == std::vector<TokenId>{TokenId{7}, TokenId{8}});
  constexpr int kDeltas = 500;  // faster than they can be written: some merge
  std::string sent;
  for (int i = 0; i < kDeltas; ++i) {
    const std::string text = fmt::format("{},", i);
    sent += text;
    submitted->sink->OnDelta(Delta(text, {i}));
  }
  submitted->sink->OnDelta(LastDelta(FinishReason::kLength));
  std::string received;
  std::vector<std::int64_t> ids;
  v1::CompletionStreamResponse last;
  int logprobs = 0;
  for (v1::CompletionStreamResponse part; stream.reader->Read(&part); last = part) {
    CHECK(last.finish_reason() == v1::FINISH_REASON_UNSPECIFIED);
    received += part.text();
    ids.insert(ids.end(), part.token_ids().begin(), part.token_ids().end());
    logprobs += part.logprobs_size();
    CHECK(part.request_id() == "mine");
    CHECK(part.model() == "m");
    CHECK(part.seed() == 42);
  }
  CHECK(stream.reader->Finish().ok());
  CHECK(received == sent);
  REQUIRE(ids.size() == kDeltas);
  CHECK(ids.back() == kDeltas - 1);
  CHECK(logprobs == kDeltas);
  CHECK(last.finish_reason() == v1::FINISH_REASON_LENGTH);
  CHECK(last.usage().prompt_tokens() == 3);
  CHECK(last.usage().completion_tokens() == 2);
  CHECK(last.usage().cache_hit_tokens() == 1);
  CHECK(last.usage().cache_miss_tokens() == 2);
  CHECK(last.usage().preemptions() == 4);
  CHECK(last.usage().total_tokens() == 5);
  CHECK(last.usage().queue_ms() == 1.0);
  CHECK(last.usage().prefill_ms() == 2.0);
  CHECK(last.usage().decode_ms() == 3.0);
  CHECK(!last.usage().has_cost());
  CHECK(stream.rpc.GetServerInitialMetadata().count("x-request-id") == 1);
}

TEST_CASE("deltas merge while a client does not read, and one that never reads is dropped",
          "[api]") {
  // By what waits, or by how long it waits once it is more than a little.
  const auto limits = GENERATE(values<SlowClientLimits>(
      {{.pending_bytes_max = 256 << 10}, {.pending_bytes_max = 1 << 30, .stalled_us_max = 1}}));
  Loopback loopback(nullptr);
  loopback.context->slow_client = limits;
  Stream stream(loopback);
  stream.Start(Valid());
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  int deltas = 0;
  constexpr int kDeltasMax = 100'000;
  const std::string text(4096, 'x');
  while (!submitted->sink->cancelled() && deltas < kDeltasMax) {
    submitted->sink->OnDelta(Delta(text, {1}));
    ++deltas;
  }
  CHECK(deltas < kDeltasMax);
  submitted->sink->OnDelta(LastDelta(FinishReason::kCancelled));
  int parts = 0;
  for (v1::CompletionStreamResponse part; stream.reader->Read(&part);) {
    ++parts;
  }
  CHECK_FALSE(stream.reader->Finish().ok());
  CHECK(parts < deltas);
}

TEST_CASE("errors of the engine are statuses, before any header", "[api]") {
  struct Case {
    ErrorCode code;
    grpc::StatusCode expected;
  };
  const auto one = GENERATE(values<Case>({
      {ErrorCode::kInvalidArgument, grpc::StatusCode::INVALID_ARGUMENT},
      {ErrorCode::kResourceExhausted, grpc::StatusCode::RESOURCE_EXHAUSTED},
      {ErrorCode::kUnavailable, grpc::StatusCode::UNAVAILABLE},
      {ErrorCode::kDeadlineExceeded, grpc::StatusCode::DEADLINE_EXCEEDED},
      {ErrorCode::kInternal, grpc::StatusCode::INTERNAL},
  }));
  Loopback loopback(nullptr);
  loopback.engine.refusal = Error{one.code, "queue full:\n512 wait"};
  Stream stream(loopback);
  v1::CompletionRequest request = Valid();
  request.set_request_id("r1");
  stream.Start(request);
  v1::CompletionStreamResponse part;
  CHECK_FALSE(stream.reader->Read(&part));
  const grpc::Status status = stream.reader->Finish();
  CHECK(status.error_code() == one.expected);
  CHECK(status.error_message() == "queue full: 512 wait");
  CHECK(stream.rpc.GetServerInitialMetadata().empty());
  const auto& trailers = stream.rpc.GetServerTrailingMetadata();
  CHECK(trailers.find("x-request-id")->second == "r1");
  CHECK((trailers.count("grpc-retry-pushback-ms") == 1) ==
        (one.code == ErrorCode::kResourceExhausted));
}

TEST_CASE("how a request ends decides reason and status", "[api]") {
  struct Case {
    FinishReason reason;
    grpc::StatusCode code;
    v1::FinishReason expected;
  };
  const auto one = GENERATE(values<Case>({
      {FinishReason::kStop, grpc::StatusCode::OK, v1::FINISH_REASON_STOP},
      {FinishReason::kLength, grpc::StatusCode::OK, v1::FINISH_REASON_LENGTH},
      {FinishReason::kAborted, grpc::StatusCode::OK, v1::FINISH_REASON_ABORTED},
      {FinishReason::kDeadline, grpc::StatusCode::DEADLINE_EXCEEDED, v1::FINISH_REASON_DEADLINE},
      {FinishReason::kError, grpc::StatusCode::INTERNAL, v1::FINISH_REASON_ERROR},
  }));
  Loopback loopback(nullptr);
  Stream stream(loopback);
  stream.Start(Valid());
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  submitted->sink->OnDelta(Delta("half", {1}));
  submitted->sink->OnDelta(LastDelta(one.reason));
  std::string text;
  v1::CompletionStreamResponse last;
  for (v1::CompletionStreamResponse part; stream.reader->Read(&part); last = part) {
    text += part.text();
  }
  CHECK(stream.reader->Finish().error_code() == one.code);
  CHECK(text == "half");
  CHECK(last.finish_reason() == one.expected);
}

TEST_CASE("a client that goes away sets the cancel flag at once", "[api]") {
  Loopback loopback(nullptr);
  std::optional<testing::Submitted> submitted;
  {
    Stream stream(loopback);
    stream.Start(Valid());
    submitted = loopback.engine.Wait(0);
    REQUIRE(submitted);
    CHECK_FALSE(submitted->sink->cancelled());
    stream.rpc.TryCancel();
    v1::CompletionStreamResponse part;
    CHECK_FALSE(stream.reader->Read(&part));
    CHECK(stream.reader->Finish().error_code() == grpc::StatusCode::CANCELLED);
  }
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!submitted->sink->cancelled() && std::chrono::steady_clock::now() < limit) {
    std::this_thread::yield();
  }
  CHECK(submitted->sink->cancelled());
  submitted->sink->OnDelta(LastDelta(FinishReason::kCancelled));
}

TEST_CASE("the deadline reaches the engine", "[api]") {
  Loopback loopback(nullptr);
  Stream stream(loopback);
  stream.rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(100));
  stream.Start(Valid());
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  REQUIRE(submitted->request.stop.deadline_us);
  const std::int64_t left = *submitted->request.stop.deadline_us - loopback.clock.NowUs();
  CHECK(left > 60'000'000);
  CHECK(left <= 102'000'000);  // grpc-timeout is sent rounded up
  submitted->sink->OnDelta(LastDelta(FinishReason::kStop));
  v1::CompletionStreamResponse part;
  CHECK(stream.reader->Read(&part));
  CHECK(stream.reader->Finish().ok());
}

TEST_CASE("malformed requests are INVALID_ARGUMENT and harm nobody", "[api]") {
  struct Case {
    const char* what;
    std::string bytes;
    const char* message;
  };
  const std::vector<Case> cases = {
      {"garbage", "\xff\xff\xff\xff", "not a valid protobuf message"},
      {"truncated", "\x0a\x7f", "not a valid protobuf message"},
      {"text that is not UTF-8", std::string("\x0a\x02\xff\xfe", 4), "not UTF-8"},
      {"unknown field", std::string("\xf8\x07\x01", 3), "no field has number 127"},
      {"unknown field inside", std::string("\x32\x03\xf8\x07\x01", 5),
       "CompletionRequest.sampling: no field has number 127"},
      {"end group", "\x0c", "not a valid protobuf message"},
      {"17 groups in each other", std::string(17, '\x7b') + std::string(17, '\x7c'),
       "not a valid protobuf message"},
      {"15 groups in each other", std::string(15, '\x7b') + std::string(15, '\x7c'),
       "no field has number 15"},
  };
  Loopback loopback(nullptr);
  Stream stream(loopback);
  stream.Start(Valid());
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  for (const Case& one : cases) {
    CAPTURE(one.what);
    submitted->sink->OnDelta(Delta("a", {1}));
    for (const char* method : {kComplete, "/dsa.v1.CompletionService/CompleteStream"}) {
      const grpc::Status status = CallRaw(loopback.channel, method, one.bytes);
      CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
      CHECK(status.error_message().find(one.message) != std::string::npos);
    }
  }
  CHECK(loopback.engine.submitted() == 1);
  submitted->sink->OnDelta(LastDelta(FinishReason::kStop));
  std::string text;
  for (v1::CompletionStreamResponse part; stream.reader->Read(&part);) {
    text += part.text();
  }
  CHECK(stream.reader->Finish().ok());
  CHECK(text.size() == cases.size());
}

TEST_CASE("compression, oversize and unknown methods are refused", "[api]") {
  Loopback loopback(nullptr);
  {
    grpc::ClientContext rpc;
    rpc.set_compression_algorithm(GRPC_COMPRESS_GZIP);
    rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::CompletionRequest request = Valid();
    request.set_cache_salt(std::string(250, 's'));
    const grpc::Status status =
        CallRaw(loopback.channel, kComplete, request.SerializeAsString(), rpc);
    CHECK(status.error_code() == grpc::StatusCode::UNIMPLEMENTED);
  }
  const std::string large((16 << 20) + 1, 'x');
  CHECK(CallRaw(loopback.channel, kComplete, large).error_code() ==
        grpc::StatusCode::RESOURCE_EXHAUSTED);
  for (const char* unknown : {"/dsa.v1.CompletionService/Nothing", "/grpc.health.v1.Health/List"}) {
    CHECK(CallRaw(loopback.channel, unknown, "").error_code() == grpc::StatusCode::UNIMPLEMENTED);
  }
  // Just below the limit it is our own parser that answers.
  CHECK(CallRaw(loopback.channel, kComplete, std::string(15 << 20, '\xff')).error_code() ==
        grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(loopback.engine.submitted() == 0);
}

TEST_CASE("draining refuses what is new and health says so", "[api]") {
  Loopback loopback(nullptr);
  const auto health = grpc::health::v1::Health::NewStub(loopback.channel);
  const auto check = [&](const std::string& name) {
    grpc::ClientContext rpc;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(name);
    grpc::health::v1::HealthCheckResponse response;
    CHECK(health->Check(&rpc, request, &response).ok());
    return response.status();
  };
  using Response = grpc::health::v1::HealthCheckResponse;
  grpc::ClientContext watching;
  const auto watch = health->Watch(&watching, grpc::health::v1::HealthCheckRequest());
  Response seen;
  REQUIRE(watch->Read(&seen));
  CHECK(seen.status() == Response::SERVING);
  for (const char* name : {"", "readiness", "liveness", "dsa.v1.ChatService"}) {
    CHECK(check(name) == Response::SERVING);
  }
  loopback.server->BeginDrain();
  REQUIRE(watch->Read(&seen));
  CHECK(seen.status() == Response::NOT_SERVING);
  CHECK(check("") == Response::NOT_SERVING);
  CHECK(check("liveness") == Response::SERVING);
  const grpc::Status status = CallRaw(loopback.channel, kComplete, Valid().SerializeAsString());
  CHECK(status.error_code() == grpc::StatusCode::UNAVAILABLE);
  CHECK(status.error_message().rfind("draining", 0) == 0);
  // Stopping ends the watch and does not wait for it.
  constexpr std::int64_t kLimitUs = 60'000'000;
  const auto start = std::chrono::steady_clock::now();
  loopback.server->Stop(kLimitUs);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::microseconds(kLimitUs / 3));
  CHECK_FALSE(watch->Read(&seen));
  CHECK(watch->Finish().error_code() == grpc::StatusCode::UNAVAILABLE);
}

TEST_CASE("a live request id is taken, and abort ends its stream", "[api]") {
  Loopback loopback(nullptr);
  Stream stream(loopback);
  v1::CompletionRequest request = Valid();
  request.set_request_id("job");
  stream.Start(request);
  REQUIRE(loopback.engine.Wait(0));
  CHECK(CallRaw(loopback.channel, kComplete, request.SerializeAsString()).error_code() ==
        grpc::StatusCode::ALREADY_EXISTS);
  const auto admin = v1::AdminService::NewStub(loopback.channel);
  const auto abort = [&](const std::string& id, v1::AbortResponse& response) {
    grpc::ClientContext rpc;
    v1::AbortRequest message;
    message.set_request_id(id);
    return admin->Abort(&rpc, message, &response);
  };
  v1::AbortResponse response;
  CHECK(abort("", response).error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(abort("other", response).ok());
  CHECK_FALSE(response.aborted());
  CHECK(abort("job", response).ok());
  CHECK(response.aborted());
  v1::CompletionStreamResponse part;
  REQUIRE(stream.reader->Read(&part));
  CHECK(part.finish_reason() == v1::FINISH_REASON_ABORTED);
  CHECK(stream.reader->Finish().ok());
}

TEST_CASE("models, load and server info", "[api]") {
  Loopback loopback(nullptr);
  const auto models = v1::ModelService::NewStub(loopback.channel);
  grpc::ClientContext first;
  v1::ListModelsResponse list;
  REQUIRE(models->ListModels(&first, v1::ListModelsRequest(), &list).ok());
  REQUIRE(list.models_size() == 1);
  CHECK(list.models(0).id() == "m");
  CHECK(list.models(0).context_length() == 4096);
  CHECK(list.models(0).masked_mha_until() == 3072);
  grpc::ClientContext second;
  v1::GetModelRequest wanted;
  wanted.set_id("other");
  v1::ModelInfo info;
  CHECK(models->GetModel(&second, wanted, &info).error_code() == grpc::StatusCode::NOT_FOUND);
  const auto admin = v1::AdminService::NewStub(loopback.channel);
  grpc::ClientContext third;
  v1::Load load;
  REQUIRE(admin->GetLoad(&third, v1::GetLoadRequest(), &load).ok());
  CHECK(load.waiting() == 3);
  CHECK(load.blocks_total() == 7);
  REQUIRE(load.ranks_size() == 1);
  CHECK(load.ranks(0).last_step_ms() == 2.5);
  CHECK(load.ranks(0).expert_pairs() == 80);
  CHECK(load.ranks(0).expert_pairs_max_over_mean() == 1.25);
  grpc::ClientContext fourth;
  v1::ServerInfo server;
  REQUIRE(admin->GetServerInfo(&fourth, v1::GetServerInfoRequest(), &server).ok());
  CHECK(server.version() == "9");
}

TEST_CASE("a chat is split into reasoning, content and tool calls", "[api][chat]") {
  Loopback loopback(&TestTokenizer());
  const auto stub = v1::ChatService::NewStub(loopback.channel);
  v1::ChatRequest request;
  v1::Message& message = *request.add_messages();
  message.set_role(v1::ROLE_USER);
  message.set_content("Hi <｜Assistant｜>");
  request.set_thinking(true);
  v1::ChatResponse response;
  grpc::ClientContext rpc;
  grpc::Status status;
  std::thread client([&] { status = stub->Chat(&rpc, request, &response); });
  const auto submitted = loopback.engine.Wait(0);
  if (submitted) {
    submitted->sink->OnDelta(Delta("because", {10, 11}));
    submitted->sink->OnDelta(Delta("</think>", {12}));
    submitted->sink->OnDelta(Delta("Hello", {13}));
    submitted->sink->OnDelta(LastDelta(FinishReason::kStop));
  }
  client.join();
  REQUIRE(submitted);
  REQUIRE(status.ok());
  CHECK(response.message().reasoning_content() == "because");
  CHECK(response.message().content() == "Hello");
  CHECK(response.finish_reason() == v1::FINISH_REASON_STOP);
  CHECK(response.usage().reasoning_tokens() == 3);
  // What the user typed makes no control token.
  const auto assistant = TestTokenizer().AddedToken("<｜Assistant｜>");
  REQUIRE(assistant);
  const auto& prompt = submitted->request.prompt;
  CHECK(std::count(prompt.begin(), prompt.end(), *assistant) == 1);
}

TEST_CASE("what a conversation cannot be is refused by name", "[api][chat]") {
  Loopback loopback(&TestTokenizer());
  const auto stub = v1::ChatService::NewStub(loopback.channel);
  const auto error = [&](const v1::ChatRequest& request) {
    grpc::ClientContext rpc;
    v1::ChatResponse response;
    return stub->Chat(&rpc, request, &response);
  };
  v1::ChatRequest request;
  CHECK(error(request).error_message() == "messages: empty");
  v1::Message& message = *request.add_messages();
  CHECK(error(request).error_message().rfind("messages[0].role: 0 is none of", 0) == 0);
  message.set_role(v1::ROLE_USER);
  CHECK(error(request).error_message() == "messages[0].content: missing");
  message.set_content("x");
  message.set_tool_call_id("c");
  CHECK(error(request).error_message() == "messages[0].tool_call_id: only a tool has it");
  message.clear_tool_call_id();
  message.set_prefix(true);
  CHECK(error(request).error_message() ==
        "messages[0].prefix: only the last message, an assistant's, can be continued");
  message.clear_content();
  CHECK(error(request).error_message() == "messages[0].content: a user message needs text");
  message.set_content("x");
  message.set_prefix(false);
  request.add_tools()->set_function_json("[]");
  CHECK(error(request).error_message().rfind("tools[0].function_json", 0) == 0);
  CHECK(loopback.engine.submitted() == 0);
}

TEST_CASE("tokens and text go both ways", "[api][chat]") {
  Loopback loopback(&TestTokenizer());
  const auto stub = v1::TokenService::NewStub(loopback.channel);
  grpc::ClientContext first;
  v1::TokenizeRequest request;
  request.set_text("Grüße <｜User｜>");
  v1::TokenizeResponse plain;
  REQUIRE(stub->Tokenize(&first, request, &plain).ok());
  grpc::ClientContext second;
  v1::DetokenizeRequest back;
  *back.mutable_ids() = plain.ids();
  v1::DetokenizeResponse text;
  REQUIRE(stub->Detokenize(&second, back, &text).ok());
  CHECK(text.text() == request.text());
  grpc::ClientContext third;
  request.set_parse_special(true);
  v1::TokenizeResponse special;
  REQUIRE(stub->Tokenize(&third, request, &special).ok());
  CHECK(special.ids_size() < plain.ids_size());
  grpc::ClientContext fourth;
  v1::CountTokensRequest counting;
  counting.set_text(request.text());
  v1::CountTokensResponse count;
  REQUIRE(stub->CountTokens(&fourth, counting, &count).ok());
  CHECK(count.tokens() == plain.ids_size());
  grpc::ClientContext fifth;
  v1::RenderRequest rendering;
  v1::Message& message = *rendering.mutable_conversation()->add_messages();
  message.set_role(v1::ROLE_USER);
  message.set_content("Hi");
  v1::RenderResponse rendered;
  REQUIRE(stub->Render(&fifth, rendering, &rendered).ok());
  CHECK(rendered.prompt().find("<｜User｜>Hi<｜Assistant｜>") != std::string::npos);
  CHECK(rendered.ids_size() > 3);
  grpc::ClientContext sixth;
  back.add_ids(129280);
  CHECK(stub->Detokenize(&sixth, back, &text).error_code() == grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace dsa::loopback_test
