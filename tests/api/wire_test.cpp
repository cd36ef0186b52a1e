// Laws of the connection: reflection, health, pings, the request's id in the metadata; and tool
// calls.
#include "proto/admin.grpc.pb.h"
#include "proto/chat.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "proto/token.grpc.pb.h"
#include "tests/api/loopback.h"
#include "tests/paths.h"
#include "tokenizer/tokenizer.h"

#include <cmath>
#include <map>
#include <thread>

#include <catch2/catch.hpp>

namespace dsa::wire_test {
namespace {

using testing::Delta;
using testing::LastDelta;
using testing::Loopback;

// One message to a method, and the bytes of the one that answers.
std::string AnswerOf(const Loopback& loopback, const std::string& method,
                     const std::string& bytes) {
  grpc::GenericStub stub(loopback.channel);
  grpc::ClientContext rpc;
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&rpc, method, grpc::StubOptions(), &request, &response,
                 [&](grpc::Status status) { done.set_value(std::move(status)); });
  CHECK(done.get_future().get().ok());
  std::vector<grpc::Slice> slices;
  CHECK(response.Dump(&slices).ok());
  std::string answer;
  for (const grpc::Slice& part : slices) {
    answer.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  return answer;
}

// The id in a call's metadata, in front or behind; "" where it is in neither.
std::string EchoedId(const grpc::ClientContext& rpc, const grpc::Status& status) {
  const auto& metadata =
      status.ok() ? rpc.GetServerInitialMetadata() : rpc.GetServerTrailingMetadata();
  const auto found = metadata.find("x-request-id");
  return found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
}

const Tokenizer& TestTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      std::move(Tokenizer::Load(
                    testing::SourcePath("tests/fixtures/deepseek_v3_tokenizer/tokenizer.json")))
          .value();
  return *tokenizer;
}

v1::ChatRequest Question() {
  v1::ChatRequest request;
  v1::Message& message = *request.add_messages();
  message.set_role(v1::ROLE_USER);
  message.set_content("What is the weather in Paris?");
  request.add_tools()->set_function_json(
      R"({"name": "weather", "description": "d", "parameters": {"type": "object"}})");
  return request;
}

// The reply of a model that calls two tools, in pieces that cut marks and characters' words.
std::vector<std::string> ToolReply() {
  const std::string reply =
      "Let me look.\n\n<｜DSML｜function_calls>\n"
      "<｜DSML｜invoke name=\"weather\">\n"
      "<｜DSML｜parameter name=\"city\" string=\"true\">Paris</｜DSML｜parameter>\n"
      "<｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n"
      "</｜DSML｜invoke>\n"
      "<｜DSML｜invoke name=\"time\">\n</｜DSML｜invoke>\n"
      "</｜DSML｜function_calls>";
  std::vector<std::string> pieces;
  std::string piece;
  for (std::size_t i = 0; i < reply.size(); ++i) {
    piece += reply[i];
    const bool whole =
        i + 1 == reply.size() || (static_cast<unsigned char>(reply[i + 1]) & 0xC0U) != 0x80U;
    if (whole && piece.size() >= 5) {
      pieces.push_back(std::move(piece));
      piece.clear();
    }
  }
  pieces.push_back(piece);
  return pieces;
}

template <typename Calls>
void CheckToolCalls(const Calls& calls) {
  REQUIRE(calls.size() == 2);
  CHECK(calls[0].name() == "weather");
  CHECK(calls[0].arguments() == R"({"city": "Paris", "days": 3})");
  CHECK(calls[1].name() == "time");
  CHECK(calls[1].arguments() == "{}");
  CHECK_FALSE(calls[0].id().empty());
  CHECK(calls[0].id() != calls[1].id());
}

}  // namespace

TEST_CASE("reflection lists our services and describes them", "[api]") {
  const auto* const method =
      GENERATE("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
               "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
  const Loopback loopback(nullptr);
  // list_services (field 7) with an empty string; file_containing_symbol (field 4) with a name.
  const std::string list = AnswerOf(loopback, method, std::string("\x3a\x00", 2));
  for (const char* service :
       {"dsa.v1.ChatService", "dsa.v1.CompletionService", "dsa.v1.TokenService",
        "dsa.v1.ModelService", "dsa.v1.AdminService", "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}) {
    CAPTURE(service);
    CHECK(list.find(service) != std::string::npos);
    const auto length = static_cast<char>(std::char_traits<char>::length(service));
    const std::string file = AnswerOf(loopback, method, std::string("\x22") + length + service);
    CHECK(file.find("proto") != std::string::npos);
    CHECK(file.find(std::string(service).substr(std::string(service).rfind('.') + 1)) !=
          std::string::npos);
  }
}

// Scaled down: pings every second where 0.6 s are allowed, instead of 5 s where 4 s are.  Three
// pings that come too early end a connection.
TEST_CASE("clients may ping without a call and under a silent stream", "[api]") {
  CHECK(GrpcServerConfig().ping_interval_ms_min < 5'000);
  Loopback loopback(nullptr);
  GrpcServerConfig config;
  config.port = 0;
  config.ping_interval_ms_min = 600;
  const auto server = std::move(GrpcServer::Start(config, *loopback.context)).value();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 1'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt("grpc.use_local_subchannel_pool", 1);
  const auto connect = [&] {
    auto channel = grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", server->port()),
                                             grpc::InsecureChannelCredentials(), arguments);
    REQUIRE(channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(20)));
    return channel;
  };
  const auto idle = connect();
  const auto busy = connect();
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  grpc::ClientContext rpc;
  const auto stub = v1::CompletionService::NewStub(busy);
  const auto reader = stub->CompleteStream(&rpc, request);
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  const auto until = std::chrono::system_clock::now() + std::chrono::seconds(7);
  CHECK_FALSE(idle->WaitForStateChange(GRPC_CHANNEL_READY, until));
  CHECK_FALSE(busy->WaitForStateChange(GRPC_CHANNEL_READY, until));
  submitted->sink->OnDelta(Delta("a", {1}));
  submitted->sink->OnDelta(LastDelta(FinishReason::kStop));
  std::string text;
  for (v1::CompletionStreamResponse part; reader->Read(&part);) {
    text += part.text();
  }
  CHECK(reader->Finish().ok());
  CHECK(text == "a");
}

TEST_CASE("no header before the first token, so that an error before it can be retried", "[api]") {
  Loopback loopback(nullptr);
  const auto stub = v1::CompletionService::NewStub(loopback.channel);
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  grpc::CompletionQueue events;
  bool ok = false;
  const auto next = [&](std::chrono::milliseconds wait) -> void* {
    void* tag = nullptr;
    const auto limit = std::chrono::system_clock::now() + wait;
    const bool came = events.AsyncNext(&tag, &ok, limit) == grpc::CompletionQueue::GOT_EVENT;
    return came ? tag : nullptr;
  };
  int started = 0;
  int header = 0;
  int message = 0;
  int finished = 0;
  constexpr auto kLong = std::chrono::milliseconds(30'000);
  const auto reader = stub->AsyncCompleteStream(&rpc, request, &events, &started);
  REQUIRE(next(kLong) == &started);
  reader->ReadInitialMetadata(&header);
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  CHECK(next(std::chrono::milliseconds(300)) == nullptr);
  submitted->sink->OnDelta(Delta("a", {1}));
  CHECK(next(kLong) == &header);
  CHECK(rpc.GetServerInitialMetadata().count("x-request-id") == 1);
  submitted->sink->OnDelta(LastDelta(FinishReason::kStop));
  v1::CompletionStreamResponse part;
  grpc::Status status;
  do {
    reader->Read(&part, &message);
    REQUIRE(next(kLong) == &message);
  } while (ok);
  reader->Finish(&status, &finished);
  CHECK(next(kLong) == &finished);
}

TEST_CASE("an error before the first token is a status alone", "[api]") {
  struct Case {
    FinishReason reason;
    grpc::StatusCode code;
  };
  const auto one =
      GENERATE(values<Case>({{FinishReason::kDeadline, grpc::StatusCode::DEADLINE_EXCEEDED},
                             {FinishReason::kError, grpc::StatusCode::INTERNAL}}));
  Loopback loopback(nullptr);
  const auto stub = v1::CompletionService::NewStub(loopback.channel);
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.set_request_id("r6");
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const auto reader = stub->CompleteStream(&rpc, request);
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  submitted->sink->OnDelta(LastDelta(one.reason));
  v1::CompletionStreamResponse part;
  CHECK_FALSE(reader->Read(&part));
  const grpc::Status status = reader->Finish();
  CHECK(status.error_code() == one.code);
  CHECK(rpc.GetServerInitialMetadata().empty());
  CHECK(EchoedId(rpc, status) == "r6");
}

TEST_CASE("x-request-id comes back on every call, also on one that fails early", "[api]") {
  Loopback loopback(nullptr);
  const auto completion = v1::CompletionService::NewStub(loopback.channel);
  const auto refused = [&](const std::string& header, const v1::CompletionRequest& request) {
    grpc::ClientContext rpc;
    if (!header.empty()) {
      rpc.AddMetadata("x-request-id", header);
    }
    v1::CompletionResponse response;
    const grpc::Status status = completion->Complete(&rpc, request, &response);
    CHECK_FALSE(status.ok());
    return EchoedId(rpc, status);
  };
  v1::CompletionRequest empty;
  CHECK(refused("from-header", empty) == "from-header");
  CHECK(refused("", empty).empty());
  CHECK(refused("not one!", empty).empty());
  CHECK(refused(std::string(129, 'x'), empty).empty());
  empty.set_request_id("from-message");
  CHECK(refused("from-header", empty) == "from-message");
  // Not even protobuf.
  grpc::ClientContext malformed;
  malformed.AddMetadata("x-request-id", "r2");
  const grpc::Status status = testing::CallRaw(
      loopback.channel, "/dsa.v1.CompletionService/CompleteStream", "\xff", malformed);
  CHECK(EchoedId(malformed, status) == "r2");
  // The short calls.
  const auto admin = v1::AdminService::NewStub(loopback.channel);
  grpc::ClientContext load;
  load.AddMetadata("x-request-id", "r3");
  v1::Load response;
  CHECK(EchoedId(load, admin->GetLoad(&load, v1::GetLoadRequest(), &response)) == "r3");
  grpc::ClientContext abort;
  abort.AddMetadata("x-request-id", "r4");
  v1::AbortResponse aborted;
  const grpc::Status wrong = admin->Abort(&abort, v1::AbortRequest(), &aborted);
  CHECK(wrong.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(EchoedId(abort, wrong) == "r4");
  // While draining.
  loopback.server->BeginDrain();
  CHECK(refused("r5", empty) == "r5");
}

TEST_CASE("a refused request does not free the id of the live one", "[api]") {
  Loopback loopback(nullptr);
  loopback.engine.live = {"job"};
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.set_request_id("job");
  for (int i = 0; i < 2; ++i) {
    grpc::ClientContext rpc;
    const grpc::Status status = testing::CallRaw(
        loopback.channel, "/dsa.v1.CompletionService/Complete", request.SerializeAsString(), rpc);
    CHECK(status.error_code() == grpc::StatusCode::ALREADY_EXISTS);
    CHECK(EchoedId(rpc, status) == "job");
  }
}

TEST_CASE("tool calls come whole, and the answer says so", "[api][chat]") {
  Loopback loopback(&TestTokenizer());
  const auto stub = v1::ChatService::NewStub(loopback.channel);
  const auto answer = [](const testing::Submitted& submitted) {
    for (const std::string& piece : ToolReply()) {
      submitted.sink->OnDelta(Delta(piece, {1}));
    }
    submitted.sink->OnDelta(LastDelta(FinishReason::kStop));
  };
  {
    grpc::ClientContext rpc;
    const auto reader = stub->ChatStream(&rpc, Question());
    const auto submitted = loopback.engine.Wait(0);
    REQUIRE(submitted);
    answer(*submitted);
    std::string content;
    std::vector<v1::ToolCall> calls;
    v1::ChatStreamResponse last;
    for (v1::ChatStreamResponse part; reader->Read(&part); last = part) {
      content += part.content();
      calls.insert(calls.end(), part.tool_calls().begin(), part.tool_calls().end());
    }
    CHECK(reader->Finish().ok());
    CHECK(content == "Let me look.");
    CheckToolCalls(calls);
    CHECK(last.finish_reason() == v1::FINISH_REASON_TOOL_CALLS);
  }
  v1::ChatResponse response;
  grpc::ClientContext rpc;
  grpc::Status status;
  std::thread client([&] { status = stub->Chat(&rpc, Question(), &response); });
  const auto submitted = loopback.engine.Wait(1);
  if (submitted) {
    answer(*submitted);
  }
  client.join();
  REQUIRE(submitted);
  REQUIRE(status.ok());
  CHECK(response.message().content() == "Let me look.");
  CheckToolCalls(response.message().tool_calls());
  CHECK(response.finish_reason() == v1::FINISH_REASON_TOOL_CALLS);
}

TEST_CASE("a conversation may have 128 tools", "[api][chat]") {
  Loopback loopback(&TestTokenizer());
  const auto stub = v1::TokenService::NewStub(loopback.channel);
  v1::RenderRequest request;
  const v1::ChatRequest question = Question();
  *request.mutable_conversation()->mutable_messages() = question.messages();
  for (int i = 0; i < 128; ++i) {
    *request.mutable_conversation()->add_tools() = question.tools(0);
  }
  v1::RenderResponse response;
  grpc::ClientContext first;
  CHECK(stub->Render(&first, request, &response).ok());
  *request.mutable_conversation()->add_tools() = question.tools(0);
  grpc::ClientContext second;
  const grpc::Status status = stub->Render(&second, request, &response);
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(status.error_message() == "conversation.tools: 129 tools, at most 128");
}

TEST_CASE("a field that is not known is refused by its place, also in a list", "[api][chat]") {
  Loopback loopback(&TestTokenizer());
  v1::ChatRequest request = Question();
  *request.add_messages() = request.messages(0);
  v1::Message& second = *request.mutable_messages(1);
  second.GetReflection()->MutableUnknownFields(&second)->AddVarint(127, 1);
  const grpc::Status status =
      testing::CallRaw(loopback.channel, "/dsa.v1.ChatService/Chat", request.SerializeAsString());
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(status.error_message() == "ChatRequest.messages[1]: no field has number 127");
}

TEST_CASE("a message that the memory set aside for gRPC cannot hold is refused", "[api]") {
  Loopback loopback(nullptr);
  GrpcServerConfig config;
  config.port = 0;
  config.memory_bytes_max = 1 << 20;
  const auto server = std::move(GrpcServer::Start(config, *loopback.context)).value();
  grpc::ChannelArguments arguments;
  arguments.SetInt("grpc.use_local_subchannel_pool", 1);
  const auto channel = grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", server->port()),
                                                 grpc::InsecureChannelCredentials(), arguments);
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  const grpc::Status status = testing::CallRaw(channel, "/dsa.v1.CompletionService/Complete",
                                               std::string(15 << 20, '\xff'), rpc);
  CHECK(status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(testing::CallRaw(channel, "/dsa.v1.CompletionService/Complete", "\xff").error_code() ==
        grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_CASE("log-probabilities come with their tokens' bytes and candidates", "[api]") {
  Loopback loopback(&TestTokenizer());
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.set_logprobs(true);
  request.set_top_logprobs(2);
  grpc::ClientContext rpc;
  const auto stub = v1::CompletionService::NewStub(loopback.channel);
  const auto reader = stub->CompleteStream(&rpc, request);
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  CHECK(submitted->request.sampling.top_logprobs == 2);
  TokenDelta delta = Delta("a", {66});
  delta.tokens[0].top_logprobs = {{.id = TokenId{67}, .logprob = -0.25F},
                                  {.id = TokenId{66}, .logprob = -0.5F}};
  submitted->sink->OnDelta(std::move(delta));
  submitted->sink->OnDelta(LastDelta(FinishReason::kStop));
  v1::CompletionStreamResponse part;
  REQUIRE(reader->Read(&part));
  REQUIRE(part.logprobs_size() == 1);
  CHECK(part.logprobs(0).token_id() == 66);
  CHECK(part.logprobs(0).logprob() == -0.5F);
  CHECK(part.logprobs(0).token() == TestTokenizer().Bytes(TokenId{66}));
  REQUIRE(part.logprobs(0).top_size() == 2);
  CHECK(part.logprobs(0).top(0).token_id() == 67);
  CHECK(part.logprobs(0).top(0).logprob() == -0.25F);
  CHECK(part.logprobs(0).top(0).token() == TestTokenizer().Bytes(TokenId{67}));
  CHECK(part.logprobs(0).top(1).token_id() == 66);
}

TEST_CASE("what the drain's limit cuts off hears UNAVAILABLE, and its text stands", "[api]") {
  Loopback loopback(nullptr);
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  grpc::ClientContext rpc;
  const auto stub = v1::CompletionService::NewStub(loopback.channel);
  const auto reader = stub->CompleteStream(&rpc, request);
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  submitted->sink->OnDelta(Delta("half", {1}));
  loopback.server->BeginDrain();
  submitted->sink->OnDelta(LastDelta(FinishReason::kAborted));
  std::string text;
  v1::CompletionStreamResponse last;
  for (v1::CompletionStreamResponse part; reader->Read(&part); last = part) {
    text += part.text();
  }
  CHECK(text == "half");
  CHECK(last.finish_reason() == v1::FINISH_REASON_ABORTED);
  CHECK(reader->Finish().error_code() == grpc::StatusCode::UNAVAILABLE);
}

TEST_CASE("health knows its names, and answers what is malformed", "[api]") {
  using Response = grpc::health::v1::HealthCheckResponse;
  Loopback loopback(nullptr);
  const auto health = grpc::health::v1::Health::NewStub(loopback.channel);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("dsa.v1.Nothing");
  {
    grpc::ClientContext rpc;
    Response response;
    CHECK(health->Check(&rpc, request, &response).error_code() == grpc::StatusCode::NOT_FOUND);
  }
  grpc::ClientContext rpc;
  const auto watch = health->Watch(&rpc, request);
  Response seen;
  REQUIRE(watch->Read(&seen));
  CHECK(seen.status() == Response::SERVICE_UNKNOWN);
  rpc.TryCancel();
  CHECK_FALSE(watch->Read(&seen));
  CHECK(watch->Finish().error_code() == grpc::StatusCode::CANCELLED);
  for (const char* method : {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}) {
    CHECK(testing::CallRaw(loopback.channel, method, "\x0a").error_code() ==
          grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_CASE("a request that asks for its cost is told, in dollars where there is a price", "[api]") {
  const auto price_per_hour_cents = GENERATE(as<std::int64_t>(), 0, 200);
  Loopback loopback(nullptr);
  loopback.context->server.price_per_hour_cents = price_per_hour_cents;
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.set_report_cost(true);
  const auto stub = v1::CompletionService::NewStub(loopback.channel);
  grpc::ClientContext rpc;
  const auto reader = stub->CompleteStream(&rpc, request);
  const auto submitted = loopback.engine.Wait(0);
  REQUIRE(submitted);
  submitted->sink->OnDelta(LastDelta(FinishReason::kLength));
  v1::CompletionStreamResponse last;
  for (v1::CompletionStreamResponse part; reader->Read(&part); last = part) {
  }
  CHECK(reader->Finish().ok());
  REQUIRE(last.usage().has_cost());
  const v1::RequestCost& cost = last.usage().cost();
  CHECK(cost.prefill_device_us() == 1.5e6);
  CHECK(cost.decode_device_us() == 2.1e6);
  CHECK(cost.cached_tokens() == 1);
  CHECK(cost.has_dollars() == (price_per_hour_cents > 0));
  if (cost.has_dollars()) {  // a thousandth of an hour
    CHECK(std::abs(cost.dollars() - 0.002) < 1e-12);
  }
}

}  // namespace dsa::wire_test
