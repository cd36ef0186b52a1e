// Large texts beside everything else.
#include "proto/completion.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "proto/token.grpc.pb.h"
#include "server/grpc/wire.h"
#include "tests/abuse/raw_http2.h"
#include "tests/api/test_server.h"
#include "tests/log_capture.h"
#include "tests/paths.h"
#include "tests/processor_time.h"

#include <algorithm>
#include <future>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <grpcpp/channel.h>

namespace dsa::load_test {
namespace {

using std::chrono::milliseconds;
using testing::Eventually;
using testing::LogCapture;
using testing::ProcessorSecondsOf;
using testing::TestServer;
using testing::TestServerOptions;

#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kLargeBytes = std::size_t{2} << 20;
#else
constexpr std::size_t kLargeBytes = (std::size_t{16} << 20) - 100;
#endif

const Tokenizer& TestTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      std::move(Tokenizer::Load(
                    testing::SourcePath("tests/fixtures/deepseek_v3_tokenizer/tokenizer.json")))
          .value();
  return *tokenizer;
}

TestServerOptions WithText() {
  TestServerOptions options;
  options.tokenizer = &TestTokenizer();
  return options;
}

std::string Words(std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) {
    text += "a few words, and 12 more; ";
  }
  text.resize(bytes);
  return text;
}

std::string CountTokens(const TestServer& server, const std::string& text) {
  grpc::ClientContext rpc;
  v1::CountTokensRequest request;
  request.set_text(text);
  v1::CountTokensResponse response;
  const grpc::Status status =
      v1::TokenService::NewStub(server.NewChannel())->CountTokens(&rpc, request, &response);
  return status.ok() ? std::to_string(response.tokens()) : status.error_message();
}

// Whether a health check is answered before half a minute.
bool IsServing(grpc::health::v1::Health::Stub& stub) {
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  grpc::health::v1::HealthCheckResponse response;
  testing::Pause(milliseconds(5));
  return stub.Check(&rpc, grpc::health::v1::HealthCheckRequest(), &response).ok();
}

// Calls that count the tokens of a large text, until they are cancelled.
class LargeCalls final {
 public:
  LargeCalls(const TestServer& server, int count) : rpcs_(count), codes_(count) {
    request_.set_text(Words(kLargeBytes));
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([&, i] {
        v1::CountTokensResponse response;
        const auto stub = v1::TokenService::NewStub(server.NewChannel());
        codes_[i] = stub->CountTokens(&rpcs_[i], request_, &response).error_code();
      });
    }
  }
  ~LargeCalls() { Cancel(); }
  LargeCalls(const LargeCalls&) = delete;
  LargeCalls& operator=(const LargeCalls&) = delete;

  void Cancel() {
    for (grpc::ClientContext& rpc : rpcs_) {
      rpc.TryCancel();
    }
    for (std::thread& thread : threads_) {
      thread.join();
    }
    threads_.clear();
  }
  const std::vector<grpc::StatusCode>& codes() const { return codes_; }

 private:
  v1::CountTokensRequest request_;
  std::vector<grpc::ClientContext> rpcs_;
  std::vector<grpc::StatusCode> codes_;
  std::vector<std::thread> threads_;
};

TEST_CASE("eight texts as large as may be delay neither health nor a small request", "[load]") {
  constexpr int kTexts = 8;
  const LogCapture log;
  TestServer server(WithText());
  const auto health = grpc::health::v1::Health::NewStub(server.NewChannel());
  const auto done = [&] { return static_cast<int>(log.Lines("CountTokens").size()); };
  // What reads large texts stands still, for as long as the machine takes for the others.
  std::promise<void> go_on;
  const std::shared_future<void> held = go_on.get_future().share();
  REQUIRE(server.context().workers.Do(kLargeBytes, [held] { held.wait(); }).ok());
  LargeCalls large(server, kTexts);
  for (int i = 0; i < 50; ++i) {
    REQUIRE(IsServing(*health));
  }
  // A prompt that is long, but not that long, has a thread of its own.
  v1::CompletionRequest request;
  request.set_text(Words(17 << 10));
  request.mutable_stop()->set_max_tokens(1);
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  v1::CompletionResponse response;
  const grpc::Status status =
      v1::CompletionService::NewStub(server.NewChannel())->Complete(&rpc, request, &response);
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  const std::size_t tokens = TestTokenizer().Encode(request.text()).size();
  CHECK(status.error_message() ==
        fmt::format("prompt: {} tokens, at most 4095: the context has 4096 and an answer needs 1",
                    tokens));
  CHECK(done() == 0);
  // Now they are read, one after another: were health behind them, it would be answered once a
  // text.
  go_on.set_value();
  int answered = 0;
  for (; done() < kTexts / 2 && IsServing(*health); ++answered) {
  }
  INFO(answered << " checks beside " << done() << " texts");
  CHECK(done() >= kTexts / 2);
  CHECK(answered > 4 * kTexts / 2);
  large.Cancel();
  // What was cancelled before its turn is not worked on.
  CHECK(Eventually([&] { return done() == kTexts; }));
}

TEST_CASE("a prompt far beyond the context costs no more than the context", "[load]") {
  TestServer server(WithText());
  v1::CompletionRequest request;
  request.set_text(Words(kLargeBytes));
  const double counted_s = ProcessorSecondsOf([&] { CountTokens(server, request.text()); });
  const double refused_s = ProcessorSecondsOf([&] {
    grpc::ClientContext rpc;
    v1::CompletionResponse response;
    const grpc::Status status =
        v1::CompletionService::NewStub(server.NewChannel())->Complete(&rpc, request, &response);
    CHECK(
        status.error_message() ==
        "prompt: more than 4095 tokens, at most 4095: the context has 4096 and an answer needs 1");
  });
  INFO("counted " << counted_s << " s, refused " << refused_s << " s");
  CHECK(refused_s < counted_s / 4);
}

#ifndef __SANITIZE_ADDRESS__  // a million tokens, five times
TEST_CASE("tokens of a text or a conversation are counted up to a limit and no further", "[load]") {
  TestServer server(WithText());
  server.context().model.chat_format = ChatFormat::kV32;
  const auto stub = v1::TokenService::NewStub(server.NewChannel());
  constexpr std::size_t kMax = std::size_t{1} << 20;
  REQUIRE(TestTokenizer().Encode("5\n5\n5").size() == 5);
  std::string text;
  while (text.size() < kMax) {
    text += "5\n";
  }
  CHECK(CountTokens(server, text) == std::to_string(kMax));
  text += "5";
  CHECK(CountTokens(server, text) == "text: more than 1048576 tokens, at most 1048576");
  {
    grpc::ClientContext rpc;
    v1::TokenizeRequest request;
    request.set_text(text);
    request.set_parse_special(true);
    v1::TokenizeResponse response;
    CHECK(stub->Tokenize(&rpc, request, &response).error_message() ==
          "text: more than 1048576 tokens, at most 1048576");
  }
  v1::RenderRequest request;
  v1::Message& message = *request.mutable_conversation()->add_messages();
  message.set_role(v1::ROLE_USER);
  message.set_content(text);
  grpc::ClientContext rpc;
  v1::RenderResponse response;
  CHECK(stub->Render(&rpc, request, &response).error_message() ==
        "conversation: more than 1048576 tokens, at most 1048576");
  v1::CountTokensRequest counting;
  *counting.mutable_conversation() = request.conversation();
  grpc::ClientContext counting_rpc;
  v1::CountTokensResponse counted;
  CHECK(stub->CountTokens(&counting_rpc, counting, &counted).error_message() ==
        "conversation: more than 1048576 tokens, at most 1048576");
}
#endif

TEST_CASE("more large texts than there are places are refused, and the rest answered", "[load]") {
  WorkQueue queue(2);
  std::promise<void> go_on;
  const std::shared_future<void> wait = go_on.get_future().share();
  std::promise<void> begun;
  std::vector<int> done;
  CHECK(queue.TryPush([&] {
    begun.set_value();
    wait.wait();
  }));
  begun.get_future().wait();
  CHECK(queue.TryPush([&] { done.push_back(1); }));
  CHECK(queue.TryPush([&] { done.push_back(2); }));
  CHECK_FALSE(queue.TryPush([&] { done.push_back(3); }));
  go_on.set_value();
  std::promise<void> last;
  CHECK(Eventually([&] { return queue.TryPush([&] { last.set_value(); }); }));
  last.get_future().wait();
  CHECK(done == std::vector<int>{1, 2});

  TextWorkers workers;
  const std::thread::id here = std::this_thread::get_id();
  std::promise<std::thread::id> there;
  CHECK(workers.Do(TextWorkers::kShortBytesMax, [&] { CHECK(std::this_thread::get_id() == here); })
            .ok());
  CHECK(
      workers
          .Do(TextWorkers::kShortBytesMax + 1, [&] { there.set_value(std::this_thread::get_id()); })
          .ok());
  CHECK(there.get_future().get() != here);
  // A full queue of large ones leaves the others alone.
  std::promise<void> release;
  const std::shared_future<void> held = release.get_future().share();
  int taken = 0;
  Status status;
  while (taken < 1000) {
    status = workers.Do(TextWorkers::kMediumBytesMax + 1, [held] { held.wait(); });
    if (!status.ok()) {
      break;
    }
    ++taken;
  }
  CHECK(taken >= 16);
  CHECK(taken <= 17);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code == ErrorCode::kResourceExhausted);
  CHECK(status.error().message ==
        "too much text: 16 requests of this size wait to be read, at most 16");
  std::promise<void> medium;
  CHECK(workers.Do(TextWorkers::kMediumBytesMax, [&] { medium.set_value(); }).ok());
  medium.get_future().wait();
  release.set_value();
}

// A call of raw frames, whose answer finds a window of 64 KiB that nobody opens again.
std::string UnreadDetokenize(std::uint32_t stream) {
  v1::DetokenizeRequest request;
  for (int i = 0; i < 16'000; ++i) {
    request.add_ids(0);  // "<｜begin▁of▁sentence｜>": 464,000 bytes of text
  }
  const std::string bytes = request.SerializeAsString();
  std::string message(1, '\0');
  for (int shift = 24; shift >= 0; shift -= 8) {
    message.push_back(static_cast<char>(bytes.size() >> shift & 0xff));
  }
  return testing::Frame(testing::kHeadersFrame, testing::kEndHeadersFlag, stream,
                        testing::RequestHeaders("/dsa.v1.TokenService/Detokenize")) +
         testing::Frame(testing::kDataFrame, testing::kEndStreamFlag, stream, message + bytes);
}

TEST_CASE("short calls whose answers nobody reads are few, and dropped", "[load]") {
  const LogCapture log;
  TestServerOptions options = WithText();
  options.slow_client = {.stalled_us_max = 1'000'000, .answer_bytes_max = 1'000'000};
  TestServer server(options);
  testing::RawConnection unread(server.port());
  std::string bytes =
      testing::ClientPreface() + testing::Frame(testing::kSettingsFrame, testing::kAckFlag, 0, "");
  constexpr std::uint32_t kCalls = 5;
  for (std::uint32_t i = 0; i < kCalls; ++i) {
    bytes += UnreadDetokenize(2 * i + 1);
  }
  REQUIRE(unread.Send(bytes));
  // Two have room.  The others are refused, and heard at once.
  CHECK(Eventually([&] { return log.Lines("too many answers wait to be read").size() == 3; }));
  // Whose answer is small has it.
  const auto stub = v1::TokenService::NewStub(server.NewChannel());
  const auto detokenize = [&](int ids) {
    grpc::ClientContext rpc;
    v1::DetokenizeRequest request;
    for (int i = 0; i < ids; ++i) {
      request.add_ids(0);
    }
    v1::DetokenizeResponse response;
    return stub->Detokenize(&rpc, request, &response).error_code();
  };
  CHECK(detokenize(10) == grpc::StatusCode::OK);
  CHECK(Eventually([&] { return log.Lines("client too slow").size() == 2; }));
  CHECK(log.Lines("client too slow")[0].find("code=\"RESOURCE_EXHAUSTED\"") != std::string::npos);
  CHECK(detokenize(16'000) == grpc::StatusCode::OK);  // there is room again
  unread.ReadFor(100);
  CHECK(unread.frames(testing::kResetFrame) == 2);
  CHECK_FALSE(unread.ended());
}

TEST_CASE("the text of ids has a limit", "[load]") {
  TestServer server(WithText());
  v1::DetokenizeRequest request;
  request.mutable_ids()->Resize(600'000, 0);  // of 29 bytes each
  grpc::ClientContext rpc;
  v1::DetokenizeResponse response;
  const grpc::Status status =
      v1::TokenService::NewStub(server.NewChannel())->Detokenize(&rpc, request, &response);
  CHECK(status.error_message() == "ids: more than 16777216 bytes of text, at most 16777216");
}

std::string Repeated(std::string_view part, std::size_t count) {
  std::string all;
  all.reserve(part.size() * count);
  for (std::size_t i = 0; i < count; ++i) {
    all += part;
  }
  return all;
}

template <typename MessageType>
std::string ParseError(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  MessageType message;
  const Status status = ParseMessage(grpc::ByteBuffer(&slice, 1), UnknownFields::kIgnored, message);
  return status.ok() ? "" : status.error().message;
}

// Sixteen megabytes of these took up to 1.4 GB.
TEST_CASE("a message has a number of parts that no honest one has", "[load][wire]") {
  constexpr std::size_t kMax = kMessageFieldsMax;
  const std::string refused = "ChatRequest: more than 262144 fields, at most 262144";
  const std::string empty_message("\x12\x00", 2);
  const std::string empty_tool("\x1a\x00", 2);
  CHECK(ParseError<v1::ChatRequest>(Repeated(empty_message, kMax)).empty());
  CHECK(ParseError<v1::ChatRequest>(Repeated(empty_message, kMax + 1)) == refused);
  CHECK(ParseError<v1::ChatRequest>(Repeated(empty_message, kMax / 2) +
                                    Repeated(empty_tool, kMax / 2 + 1)) == refused);
  // Within one message, and what nobody knows, alone and in a group.
  v1::ChatRequest inner;
  for (std::size_t i = 0; i < kMax; ++i) {
    inner.mutable_messages()->Add();
  }
  v1::CountTokensRequest outer;
  *outer.mutable_conversation()->mutable_messages() = inner.messages();
  CHECK(ParseError<v1::CountTokensRequest>(outer.SerializeAsString()) ==
        "CountTokensRequest: more than 262144 fields, at most 262144");
  const std::string unknown("\xf8\x07\x01", 3);
  CHECK(ParseError<v1::ChatRequest>(Repeated(unknown, kMax + 1)) == refused);
  CHECK(ParseError<v1::ChatRequest>("\xfb\x07" + Repeated(unknown, kMax + 1) + "\xfc\x07") ==
        refused);
  // One text may have all the bytes.
  v1::CompletionRequest text;
  text.set_text(std::string(std::size_t{16} << 20, 'a'));
  CHECK(ParseError<v1::CompletionRequest>(text.SerializeAsString()).empty());
  // What ends too early, or is longer than what it is in, is the parser's to refuse.
  const std::string broken =
      "ChatRequest: not a valid protobuf message, or it has text that is not UTF-8";
  CHECK(ParseError<v1::ChatRequest>(Repeated(empty_message, kMax - 1) + "\x12") == broken);
  CHECK(ParseError<v1::ChatRequest>(Repeated(empty_message, kMax - 1) +
                                    "\x12\xff\xff\xff\xff\x0f") == broken);
}

TEST_CASE("a message has as many ids as a text may have tokens", "[load][wire]") {
  constexpr std::size_t kMax = kMessageNumbersMax;
  const std::string refused = "CompletionRequest: more than 1048576 ids, at most 1048576";
  v1::CompletionRequest request;
  request.mutable_token_ids()->mutable_ids()->Resize(static_cast<int>(kMax), 5);
  CHECK(ParseError<v1::CompletionRequest>(request.SerializeAsString()).empty());
  request.mutable_stop()->add_stop_token_ids(300);
  CHECK(ParseError<v1::CompletionRequest>(request.SerializeAsString()) == refused);
  request.mutable_stop()->clear_stop_token_ids();
  request.mutable_token_ids()->mutable_ids()->Resize(static_cast<int>(kMax) + 1, 100'000);
  CHECK(ParseError<v1::CompletionRequest>(request.SerializeAsString()) == refused);
  // Not packed.
  CHECK(ParseError<v1::DetokenizeRequest>(Repeated("\x10\x07", kMax)).empty());
  CHECK(ParseError<v1::DetokenizeRequest>(Repeated("\x10\x07", kMax + 1)) ==
        "DetokenizeRequest: more than 1048576 ids, at most 1048576");
}

TEST_CASE("a health check is small", "[load]") {
  TestServer server;
  const auto stub = grpc::health::v1::Health::NewStub(server.NewChannel());
  grpc::ClientContext rpc;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(std::string(5000, 'x'));
  grpc::health::v1::HealthCheckResponse response;
  CHECK(stub->Check(&rpc, request, &response).error_code() == grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace dsa::load_test
