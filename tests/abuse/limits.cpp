#include "tests/abuse/limits.h"

#include "common/machine.h"
#include "proto/completion.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "proto/token.grpc.pb.h"
#include "tests/abuse/child_process.h"
#include "tests/abuse/raw_http2.h"
#include "tests/api/test_server.h"
#include "tests/paths.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <poll.h>
#include <unistd.h>

namespace dsa::testing {
namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::duration<double, std::milli>;

constexpr double kMb = 1e6;

// ---- a burst at a full server ----

class Silence final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& /*delta*/) override {}
};

// A request runs for half an hour, another one waits, and there is no place for a third.
int ServeFull() {
  constexpr int kAnswer = 90'000;
  GiveLargeBlocksBack();
  TestServerOptions options;
  options.engine.scheduler.sequences_max = 1;
  options.engine.scheduler.waiting_max = 1;
  options.engine.scheduler.context_tokens_max = 100'000;
  options.engine.blocks = 100'000 / options.engine.tokens_per_block + 1;
  TestServer server(options);
  server.steps().SetDuration(std::chrono::milliseconds(20));
  for (const char* const id : {"runs", "waits"}) {
    Request request;
    request.id = server.engine().NextRequestId();
    request.external_id = id;
    request.sampling.temperature = 0.0F;
    request.stop.max_tokens = kAnswer;
    request.prompt = {TokenId{7}, TokenId{8}};
    if (!server.engine().Submit(std::move(request), std::make_shared<Silence>()).ok()) {
      return EXIT_FAILURE;
    }
    Eventually([&] { return server.engine().Load().running == 1; });
  }
  SayPort(server.port());
  pollfd input = {.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
  while (poll(&input, 1, 10'000) == 0) {
    GiveFreePagesBack();  // as dsa serve does
  }
  return EXIT_SUCCESS;
}

std::string CallFrames(std::uint32_t stream) {
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_stop()->set_max_tokens(1);
  const std::string bytes = request.SerializeAsString();
  const std::string message = std::string(4, '\0') + static_cast<char>(bytes.size()) + bytes;
  return Frame(kHeadersFrame, kEndHeadersFlag, stream,
               RequestHeaders("/dsa.v1.CompletionService/Complete")) +
         Frame(kDataFrame, kEndStreamFlag, stream, message);
}

struct Burst {
  std::vector<double> delays_ms;  // of each call, from its bytes on the socket to its trailers
  double whole_ms = 0;            // to the last trailers
  int answered = 0;               // with a message: these were not refused
};

// `calls` over one connection, `per_s` of them each second; 0: all at once.
Burst Send(std::int64_t port, int calls, double per_s) {
  RawConnection connection(port);
  Burst burst;
  std::vector<Clock::time_point> sent(static_cast<std::size_t>(calls));
  burst.delays_ms.resize(sent.size(), -1);
  int ended = 0;
  std::string answers;  // to the server's settings and pings
  connection.on_frame = [&](RawFrameType type, std::uint8_t flags, std::uint32_t stream) {
    if (type == kSettingsFrame && (flags & kAckFlag) == 0) {
      answers += Frame(kSettingsFrame, kAckFlag, 0, "");
    }
    burst.answered += type == kDataFrame ? 1 : 0;
    if (type == kHeadersFrame && (flags & kEndStreamFlag) != 0) {
      const std::size_t call = stream / 2;
      burst.delays_ms.at(call) = Milliseconds(Clock::now() - sent.at(call)).count();
      ++ended;
    }
  };
  connection.Send(ClientPreface());
  connection.ReadFor(100);
  const Clock::time_point start = Clock::now();
  int begun = 0;
  while (ended < calls && !connection.ended()) {
    const Milliseconds now = Clock::now() - start;
    const int due =
        per_s > 0 ? std::min(calls, static_cast<int>(now.count() * per_s / 1000) + 1) : calls;
    for (; begun < due && !connection.offers_wait(); ++begun) {
      sent[static_cast<std::size_t>(begun)] = Clock::now();
      connection.Offer(CallFrames(static_cast<std::uint32_t>(2 * begun + 1)));
    }
    const short events = connection.offers_wait() ? POLLIN | POLLOUT : POLLIN;
    pollfd ready = {.fd = connection.socket(), .events = events, .revents = 0};
    const timespec pause = {.tv_sec = 0, .tv_nsec = begun < calls ? 50'000 : 1'000'000};
    ppoll(&ready, 1, &pause, nullptr);
    connection.Offer(std::exchange(answers, {}));
  }
  burst.whole_ms = Milliseconds(Clock::now() - start).count();
  return burst;
}

// Of sorted values.
double At(const std::vector<double>& values, double quantile) {
  return values[static_cast<std::size_t>(quantile * static_cast<double>(values.size() - 1))];
}

int PrintBurst() {
  constexpr int kCalls = 10'000;
  constexpr std::chrono::minutes kLater{1};
  const ChildProcess server("serve-full");
  Send(server.port(), 100, 1000);
  const auto resident = [&] { return static_cast<double>(server.ResidentBytes()) / kMb; };
  const double before_mb = resident();
  fmt::print(
      "| calls per second | refused | server's processor, us per call | p50, ms | p99, ms | "
      "p99.9, ms | max, ms | resident, MB, {:.1f} before |\n|---|---|---|---|---|---|---|---|\n",
      before_mb);
  for (const double per_s : {1000.0, 2000.0, 3000.0, 5000.0, 0.0}) {
    const std::int64_t processor_us = server.ProcessorUs();
    Burst burst = Send(server.port(), kCalls, per_s);
    const double own_us = static_cast<double>(server.ProcessorUs() - processor_us) / kCalls;
    const auto refused = std::count_if(burst.delays_ms.begin(), burst.delays_ms.end(),
                                       [](double delay_ms) { return delay_ms >= 0; });
    if (per_s == 0) {  // less what the calls before it take at the rate of the whole
      for (std::size_t i = 0; i < burst.delays_ms.size(); ++i) {
        burst.delays_ms[i] -= burst.whole_ms * static_cast<double>(i + 1) / kCalls;
      }
    }
    std::sort(burst.delays_ms.begin(), burst.delays_ms.end());
    fmt::print("| {} | {} | {:.0f} | {:.2f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} |\n",
               per_s > 0 ? fmt::format("{:.0f}", per_s)
                         : fmt::format("all at once, {:.0f} ms, beyond their turn", burst.whole_ms),
               refused - burst.answered, own_us, At(burst.delays_ms, 0.5),
               At(burst.delays_ms, 0.99), At(burst.delays_ms, 0.999), burst.delays_ms.back(),
               resident());
    std::fflush(stdout);
  }
  Pause(kLater);
  fmt::print("a minute later: {:.1f} MB, {:+.1f}\n", resident(), resident() - before_mb);
  return EXIT_SUCCESS;
}

// ---- health beside large texts ----

int ServeText() {
  const auto tokenizer =
      std::move(Tokenizer::Load(SourcePath("tests/fixtures/deepseek_v3_tokenizer/tokenizer.json")))
          .value();
  TestServerOptions options;
  options.tokenizer = tokenizer.get();
  TestServer server(options);
  SayPort(server.port());
  WaitForEndOfInput();
  return EXIT_SUCCESS;
}

std::shared_ptr<grpc::Channel> ChannelTo(std::int64_t port) {
  return grpc::CreateChannel(fmt::format("127.0.0.1:{}", port), grpc::InsecureChannelCredentials());
}

// Sends texts of 16 MB, the next as soon as one is answered, until its input ends.
int SendTexts(const std::string& kind, std::int64_t port) {
  constexpr std::size_t kBytes = (std::size_t{16} << 20) - 200;
  std::string text;
  while (text.size() < kBytes) {
    text += "a few words, and 12 more; ";
  }
  text.resize(kBytes);
  std::atomic<bool> stopping{false};
  std::thread sender([&] {
    const auto tokens = v1::TokenService::NewStub(ChannelTo(port));
    const auto completion = v1::CompletionService::NewStub(ChannelTo(port));
    while (!stopping) {
      grpc::ClientContext rpc;
      if (kind == "tokenize") {
        v1::TokenizeRequest request;
        request.set_text(text);
        v1::TokenizeResponse response;
        tokens->Tokenize(&rpc, request, &response);
      } else {
        v1::CompletionRequest request;
        request.set_text(text);
        v1::CompletionResponse response;
        completion->Complete(&rpc, request, &response);
      }
    }
  });
  SayPort(port);
  WaitForEndOfInput();
  stopping = true;
  sender.join();
  return EXIT_SUCCESS;
}

// Computes until its input ends.
int Spin() {
  std::atomic<bool> stopping{false};
  std::thread spinner([&] {
    while (!stopping) {
    }
  });
  SayPort(1);
  WaitForEndOfInput();
  stopping = true;
  spinner.join();
  return EXIT_SUCCESS;
}

int PrintHealth() {
  constexpr int kOthers = 8;
  constexpr int kChecks = 2000;
  const ChildProcess server("serve-text");
  const auto stub = grpc::health::v1::Health::NewStub(ChannelTo(server.port()));
  fmt::print(
      "| beside | checks | p50, ms | p90, ms | p99, ms | max, ms |\n|---|---|---|---|---|---|\n");
  for (const std::string kind : {"nothing", "spin", "tokenize", "complete"}) {
    std::vector<std::unique_ptr<ChildProcess>> others;
    for (int i = 0; kind != "nothing" && i < kOthers; ++i) {
      others.push_back(std::make_unique<ChildProcess>(
          kind == "spin" ? kind : fmt::format("texts {} {}", kind, server.port())));
    }
    std::vector<double> times_ms;
    for (int i = 0; i < kChecks; ++i) {
      grpc::ClientContext rpc;
      grpc::health::v1::HealthCheckResponse response;
      const Clock::time_point start = Clock::now();
      if (!stub->Check(&rpc, {}, &response).ok()) {
        return EXIT_FAILURE;
      }
      times_ms.push_back(Milliseconds(Clock::now() - start).count());
      Pause(std::chrono::milliseconds(5));
    }
    std::sort(times_ms.begin(), times_ms.end());
    fmt::print("| {} | {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} |\n", kind, kChecks,
               At(times_ms, 0.5), At(times_ms, 0.9), At(times_ms, 0.99), times_ms.back());
    std::fflush(stdout);
  }
  return EXIT_SUCCESS;
}

}  // namespace

std::optional<int> RunLimits(const std::vector<std::string>& words) {
  if (words[0] == "burst") {
    return PrintBurst();
  }
  if (words[0] == "serve-full") {
    return ServeFull();
  }
  if (words[0] == "health") {
    return PrintHealth();
  }
  if (words[0] == "serve-text") {
    return ServeText();
  }
  if (words[0] == "texts" && words.size() == 3) {
    return SendTexts(words[1], std::stoll(words[2]));
  }
  if (words[0] == "spin") {
    return Spin();
  }
  return std::nullopt;
}

}  // namespace dsa::testing
