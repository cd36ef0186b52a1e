// What it costs to bring tokens to clients, HTTP beside gRPC, over an engine that says what the
// benchmark tells it: the time from the pump's hand-over to the bytes at a client's socket, the
// processor time of many streams, the memory of idle connections.
//
//   dsa_delivery_bench [SECONDS]
#include "common/clock.h"
#include "server/grpc/grpc_server.h"
#include "server/http/http_server.h"
#include "tests/abuse/raw_http2.h"
#include "tests/engine/stepped_engine.h"
#include "tests/process_usage.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <fmt/core.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

namespace dsa {
namespace {

enum class Protocol { kHttp, kGrpc };

const char* Name(Protocol protocol) {
  return protocol == Protocol::kHttp ? "HTTP" : "gRPC";
}

// Keeps the sinks of what is submitted.
class SilentEngine final : public Engine {
 public:
  Status SubmitTogether(std::vector<Siblings> prompts) override {
    const std::lock_guard lock(mutex_);
    for (const Siblings& prompt : prompts) {
      sinks_.insert(sinks_.end(), prompt.sinks.begin(), prompt.sinks.end());
    }
    changed_.notify_all();
    return {};
  }
  RequestId NextRequestId() override { return static_cast<RequestId>(++ids_); }
  bool Abort(const std::string& /*external_id*/) override { return false; }
  EngineLoad Load() const override { return {}; }
  void Drain(std::int64_t /*limit_us*/) override {}

  // The next `count` sinks; waits for them.
  std::vector<std::shared_ptr<TokenSink>> Take(std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return sinks_.size() >= count; });
    return std::exchange(sinks_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<TokenSink>> sinks_;
  std::int64_t ids_ = 0;
};

std::string StreamRequest(Protocol protocol) {
  if (protocol == Protocol::kHttp) {
    const std::string body = R"({"prompt": [7], "stream": true})";
    return fmt::format(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: {}\r\n\r\n{}",
        body.size(), body);
  }
  using testing::Frame;
  const std::string message("\x1a\x03\x0a\x01\x07", 5);  // token_ids { ids: 7 }
  // Windows so large that the client need not give more.
  const std::string settings("\x00\x04\x7f\xff\xff\xff", 6);
  const std::string window("\x7f\x00\x00\x00", 4);
  return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(testing::kSettingsFrame, 0, 0, settings) +
         Frame(testing::kWindowUpdateFrame, 0, 0, window) +
         Frame(testing::kSettingsFrame, testing::kAckFlag, 0, "") +
         Frame(testing::kHeadersFrame, testing::kEndHeadersFlag, 1,
               testing::RequestHeaders("/dsa.v1.CompletionService/CompleteStream")) +
         Frame(testing::kDataFrame, testing::kEndStreamFlag, 1,
               std::string("\0\0\0\0\x05", 5) + message);
}

Descriptor Connect(std::int64_t port) {
  Descriptor client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(client.number(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return {};
  }
  return client;
}

bool SendAll(const Descriptor& client, const std::string& bytes) {
  return send(client.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
         static_cast<ssize_t>(bytes.size());
}

TokenDelta Token(const std::string& text) {
  TokenDelta delta;
  delta.text = text;
  delta.tokens.push_back({.id = TokenId{5}, .logprob = 0.0F, .top_logprobs = {}});
  delta.usage.prompt_tokens = 1;
  return delta;
}

// One stream, whose client sees when the bytes of a token come.
class TimedStream final {
 public:
  TimedStream(Protocol protocol, std::int64_t port, SilentEngine& engine) : client_(Connect(port)) {
    DSA_CHECK(client_.ok() && SendAll(client_, StreamRequest(protocol)), "{}: no connection",
              Name(protocol));
    sink_ = engine.Take(1).front();
    reader_ = std::thread([this] { Read(); });
  }
  ~TimedStream() {
    shutdown(client_.number(), SHUT_RDWR);
    reader_.join();
  }
  TimedStream(const TimedStream&) = delete;
  TimedStream& operator=(const TimedStream&) = delete;

  std::int64_t DelayUs(int number) {
    const std::string text = fmt::format("token{:06}", number);
    {
      const std::lock_guard lock(mutex_);
      wanted_ = text;
      seen_us_ = 0;
    }
    const MonotonicUs start_us = clock_.NowUs();
    sink_->OnDelta(Token(text));
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return seen_us_ != 0; });
    return seen_us_ - start_us;
  }

 private:
  void Read() {
    std::array<char, 65536> bytes;
    std::string tail;
    while (true) {
      const ssize_t count = recv(client_.number(), bytes.data(), bytes.size(), 0);
      const MonotonicUs now_us = clock_.NowUs();
      if (count <= 0) {
        return;
      }
      tail.append(bytes.data(), static_cast<std::size_t>(count));
      const std::lock_guard lock(mutex_);
      if (!wanted_.empty() && tail.find(wanted_) != std::string::npos) {
        seen_us_ = now_us;
        wanted_.clear();
        tail.clear();
        changed_.notify_all();
      }
    }
  }

  const SteadyClock clock_;
  Descriptor client_;
  std::shared_ptr<TokenSink> sink_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string wanted_;
  MonotonicUs seen_us_ = 0;
  std::thread reader_;
};

struct Servers {
  SilentEngine engine;
  SteadyClock clock;
  std::unique_ptr<ServiceContext> context =
      testing::MakeTestContext(engine, clock, nullptr, SlowClientLimits{});
  std::unique_ptr<GrpcServer> grpc;
  std::unique_ptr<HttpServer> http;

  explicit Servers(std::int64_t connections_max) {
    GrpcServerConfig grpc_config;
    grpc_config.port = 0;
    grpc_config.connections_max = connections_max;
    grpc = std::move(GrpcServer::Start(grpc_config, *context)).value();
    HttpServerConfig http_config;
    http_config.port = 0;
    http_config.connections_max = connections_max;
    http = std::move(HttpServer::Start(http_config, *context)).value();
  }
  std::int64_t port(Protocol protocol) const {
    return protocol == Protocol::kHttp ? http->port() : grpc->port();
  }
};

std::int64_t Percentile(std::vector<std::int64_t> values, int percent) {
  std::sort(values.begin(), values.end());
  return values[(values.size() - 1) * static_cast<std::size_t>(percent) / 100];
}

// In turn, so that both see the same machine.
void MeasureDelay(Servers& servers, int tokens) {
  TimedStream http(Protocol::kHttp, servers.port(Protocol::kHttp), servers.engine);
  TimedStream grpc(Protocol::kGrpc, servers.port(Protocol::kGrpc), servers.engine);
  std::vector<std::int64_t> http_us;
  std::vector<std::int64_t> grpc_us;
  for (int i = 0; i < tokens; ++i) {
    http_us.push_back(http.DelayUs(i));
    testing::Pause(std::chrono::microseconds(500));
    grpc_us.push_back(grpc.DelayUs(i));
    testing::Pause(std::chrono::microseconds(500));
  }
  fmt::print("one stream, {} tokens: hand-over to the client's socket, us\n", tokens);
  fmt::print("  HTTP  p50 {:4}  p90 {:4}  p99 {:4}\n", Percentile(http_us, 50),
             Percentile(http_us, 90), Percentile(http_us, 99));
  fmt::print("  gRPC  p50 {:4}  p90 {:4}  p99 {:4}\n", Percentile(grpc_us, 50),
             Percentile(grpc_us, 90), Percentile(grpc_us, 99));
}

struct Order {
  std::int64_t port;
  std::int64_t connections;
  int asks;  // 0: idle; otherwise the Protocol + 1
};

// Another process, so that clients do not count: connects, asks, and reads until it is ended.
[[noreturn]] void BeClients(int orders, int reports) {
  Order order{};
  if (read(orders, &order, sizeof(order)) != sizeof(order)) {
    _exit(0);
  }
  std::vector<Descriptor> clients;
  clients.reserve(static_cast<std::size_t>(order.connections));
  for (std::int64_t i = 0; i < order.connections; ++i) {
    clients.push_back(Connect(order.port));
    if (!clients.back().ok()) {
      _exit(1);
    }
    if (order.asks != 0) {
      SendAll(clients.back(), StreamRequest(static_cast<Protocol>(order.asks - 1)));
    }
  }
  const char ready = 1;
  if (write(reports, &ready, 1) != 1) {
    _exit(1);
  }
  std::vector<pollfd> watched;
  watched.reserve(clients.size());
  for (const Descriptor& client : clients) {
    watched.push_back({.fd = client.number(), .events = POLLIN, .revents = 0});
  }
  std::array<char, 65536> bytes;
  while (true) {
    poll(watched.data(), watched.size(), -1);
    for (const pollfd& one : watched) {
      if (one.revents != 0 && recv(one.fd, bytes.data(), bytes.size(), MSG_DONTWAIT) == 0) {
        _exit(2);  // the server has closed
      }
    }
  }
}

class Clients final {
 public:
  Clients() {
    std::array<int, 2> orders{};
    std::array<int, 2> reports{};
    DSA_CHECK(pipe(orders.data()) == 0 && pipe(reports.data()) == 0, "no pipes");
    process_ = fork();
    if (process_ == 0) {
      BeClients(orders[0], reports[1]);
    }
    orders_ = Descriptor(orders[1]);
    reports_ = Descriptor(reports[0]);
  }
  ~Clients() {
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }
  Clients(const Clients&) = delete;
  Clients& operator=(const Clients&) = delete;

  void Do(const Order& order) {
    char ready = 0;
    DSA_CHECK(write(orders_.number(), &order, sizeof(order)) == sizeof(order), "no clients");
    DSA_CHECK(read(reports_.number(), &ready, 1) == 1, "the clients could not connect");
  }
  bool alive() const { return waitpid(process_, nullptr, WNOHANG) == 0; }

 private:
  pid_t process_ = 0;
  Descriptor orders_;
  Descriptor reports_;
};

void MeasureStreams(Servers& servers, Clients& clients, Protocol protocol, int seconds) {
  constexpr int kStreams = 256;
  constexpr MonotonicUs kPeriodUs = 20'000;
  clients.Do({.port = servers.port(protocol),
              .connections = kStreams,
              .asks = static_cast<int>(protocol) + 1});
  const auto sinks = servers.engine.Take(kStreams);
  const MonotonicUs start_us = servers.clock.NowUs();
  const std::int64_t used_us = testing::ProcessorUs(getpid());
  const int rounds = seconds * 50;
  for (int round = 0; round < rounds; ++round) {
    for (const auto& sink : sinks) {
      sink->OnDelta(Token(" word"));
    }
    const MonotonicUs left_us = start_us + (round + 1) * kPeriodUs - servers.clock.NowUs();
    if (left_us > 0) {
      testing::Pause(std::chrono::microseconds(left_us));
    }
  }
  const double wall_us = static_cast<double>(servers.clock.NowUs() - start_us);
  const double spent_us = static_cast<double>(testing::ProcessorUs(getpid()) - used_us);
  fmt::print("{}: {} streams, {:.0f} tokens a second: {:.2f} processor seconds a second{}\n",
             Name(protocol), kStreams, kStreams * rounds / (wall_us / 1e6), spent_us / wall_us,
             clients.alive() ? "" : " (clients were dropped)");
}

void MeasureIdle(Servers& servers, Clients& clients, std::int64_t connections) {
  const std::int64_t before = testing::ProcessStatus(getpid(), "VmRSS");
  clients.Do({.port = servers.port(Protocol::kHttp), .connections = connections, .asks = 0});
  testing::Pause(std::chrono::milliseconds(500));
  const std::int64_t after = testing::ProcessStatus(getpid(), "VmRSS");
  fmt::print("HTTP: {} idle connections: {:.1f} MB{}\n", connections,
             static_cast<double>(after - before) / 1e6,
             clients.alive() ? "" : " (clients were dropped)");
}

int Run(int seconds) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  DSA_CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0, "no descriptors");
  constexpr std::int64_t kIdle = 10'000;
  DSA_CHECK(limit.rlim_cur >= kIdle + 2'000,
            "{} idle connections need as many open files (ulimit -Hn)", kIdle);
  Clients http_idle;  // processes before threads
  Clients http_streams;
  Clients grpc_streams;
  Servers servers(3 * kIdle);
  MeasureIdle(servers, http_idle, kIdle);
  MeasureDelay(servers, 2000);
  MeasureStreams(servers, http_streams, Protocol::kHttp, seconds);
  MeasureStreams(servers, grpc_streams, Protocol::kGrpc, seconds);
  std::fflush(stdout);
  _exit(0);  // streams are still open, and nobody waits for them
}

}  // namespace
}  // namespace dsa

int main(int argc, char** argv) {
  return dsa::Run(argc > 1 ? std::stoi(argv[1]) : 8);
}
