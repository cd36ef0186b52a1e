#include "tests/abuse/latency.h"

#include "common/descriptor.h"
#include "proto/completion.grpc.pb.h"
#include "server/net/acceptor.h"
#include "server/net/listen_sockets.h"
#include "tests/abuse/raw_http2.h"
#include "tests/api/test_server.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <fmt/core.h>
#include <grpcpp/channel.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace dsa::testing {
namespace {

using Clock = std::chrono::steady_clock;

// Reads one frame of `size` bytes, waiting for it.
bool ReadAll(int socket, std::size_t size) {
  std::array<char, 4096> bytes;
  while (size > 0) {
    pollfd ready = {.fd = socket, .events = POLLIN, .revents = 0};
    if (poll(&ready, 1, 10'000) <= 0) {
      return false;
    }
    const ssize_t got = recv(socket, bytes.data(), std::min(size, bytes.size()), 0);
    if (got <= 0) {
      return false;
    }
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

// One frame a millisecond from `server` to `client`: microseconds of each, sorted.
std::vector<double> TimeFrames(int server, int client) {
  constexpr int kFrames = 3000;
  const std::string frame = Frame(kDataFrame, 0, 1, std::string(100, 't'));
  std::vector<double> times_us;
  for (int i = 0; i < kFrames; ++i) {
    Pause(std::chrono::milliseconds(1));
    const Clock::time_point begin = Clock::now();
    if (send(server, frame.data(), frame.size(), MSG_NOSIGNAL) < 0 ||
        !ReadAll(client, frame.size())) {
      break;
    }
    times_us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  std::sort(times_us.begin(), times_us.end());
  return times_us;
}

void Print(const char* way, const std::vector<double>& times_us) {
  const std::size_t count = times_us.size();
  fmt::print("| {} | {} | {:.1f} | {:.1f} | {:.1f} |\n", way, count, times_us[count / 2],
             times_us[count * 9 / 10], times_us[count * 99 / 100]);
}

int Accept(int listener) {
  pollfd ready = {.fd = listener, .events = POLLIN, .revents = 0};
  poll(&ready, 1, 10'000);
  const int connection = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  const int on = 1;
  setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return connection;
}

}  // namespace

int PrintLatency() {
  fmt::print("| a frame of 109 bytes, us | frames | p50 | p90 | p99 |\n|---|---|---|---|---|\n");
  {
    const ListenSockets direct = std::move(OpenListenSockets("127.0.0.1", 0)).value();
    const RawConnection client(direct.port);
    const Descriptor server(Accept(direct.sockets[0].number()));
    Print("over a socket", TimeFrames(server.number(), client.socket()));
  }
  ListenSockets listening = std::move(OpenListenSockets("127.0.0.1", 0)).value();
  const std::int64_t port = listening.port;
  std::atomic<int> taken{-1};
  const auto acceptor =
      std::move(Acceptor::Start(std::move(listening),
                                {.connections_max = 8,
                                 .take =
                                     [&taken](int /*listener*/, int connection) {
                                       taken.store(connection);
                                       taken.notify_all();
                                     },
                                 .relay = RelayOptions{.handshake_ms_max = 3'600'000}}))
          .value();
  RawConnection client(port);
  client.Send(ClientPreface());
  taken.wait(-1);
  const Descriptor server(taken.load());
  Print("and through the relay", TimeFrames(server.number(), client.socket()));
  return EXIT_SUCCESS;
}

int StaySilent(std::chrono::seconds duration) {
  TestServer server;
  server.steps().SetDuration(duration);
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_stop()->set_max_tokens(1);
  grpc::ClientContext rpc;
  const auto stub = v1::CompletionService::NewStub(server.NewChannel());
  const auto reader = stub->CompleteStream(&rpc, request);
  int messages = 0;
  for (v1::CompletionStreamResponse part; reader->Read(&part);) {
    ++messages;
  }
  const grpc::Status status = reader->Finish();
  fmt::print("{} s of silence: {} messages, {}\n", duration.count(), messages,
             status.ok() ? "OK" : status.error_message());
  return status.ok() ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace dsa::testing
