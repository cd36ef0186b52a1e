// Laws of server/net/acceptor.h, by itself and under gRPC: the cap is exact, whoever closes, and a
// shortage of descriptors passes.
#include "server/net/acceptor.h"

#include "common/check.h"
#include "proto/admin.grpc.pb.h"
#include "tests/api/test_server.h"
#include "tests/log_capture.h"
#include "tests/moved_clock.h"

#include <array>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <catch2/catch.hpp>
#include <fcntl.h>
#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

namespace dsa::acceptor_test {
namespace {

using testing::Eventually;
using testing::TestServer;
using testing::TestServerOptions;

constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// -1: refused.
Descriptor Connect(std::int64_t port) {
  Descriptor client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  const auto* raw = reinterpret_cast<const sockaddr*>(&address);
  if (connect(client.number(), raw, sizeof(address)) != 0) {
    client.Close();
  }
  return client;
}

// Whether the other side ends it within `limit_ms`; what it says before is read.
bool Ends(const Descriptor& client, int limit_ms) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        limit - std::chrono::steady_clock::now());
    pollfd ready = {.fd = client.number(), .events = POLLIN, .revents = 0};
    if (left.count() <= 0 || poll(&ready, 1, static_cast<int>(left.count())) <= 0) {
      return false;
    }
    std::array<char, 256> bytes{};
    if (recv(client.number(), bytes.data(), bytes.size(), 0) <= 0) {
      return true;
    }
  }
}

// Keeps what it takes.
struct Taker {
  explicit Taker(std::int64_t connections_max) {
    auto listening = OpenListenSockets("127.0.0.1", 0);
    port = listening.value().port;
    acceptor = std::move(Acceptor::Start(std::move(listening).value(),
                                         {.connections_max = connections_max,
                                          .take =
                                              [this](int /*listener*/, int connection) {
                                                const std::lock_guard lock(mutex);
                                                taken.emplace_back(connection);
                                              }}))
                   .value();
  }
  ~Taker() { CloseAll(); }
  void CloseAll() {
    const std::lock_guard lock(mutex);
    for (const Descriptor& one : taken) {
      acceptor->Release(one.number());
    }
    taken.clear();
  }
  bool HasTaken(std::size_t count) {
    return Eventually([&] {
      const std::lock_guard lock(mutex);
      return taken.size() == count;
    });
  }

  std::int64_t port = 0;
  std::mutex mutex;
  std::vector<Descriptor> taken;  // guarded by mutex
  std::unique_ptr<Acceptor> acceptor;
};

TEST_CASE("what is taken is non-blocking, closed on exec and without delay", "[api][acceptor]") {
  Taker taker(2);
  const Descriptor client = Connect(taker.port);
  REQUIRE(taker.HasTaken(1));
  const int taken = taker.taken[0].number();
  CHECK((fcntl(taken, F_GETFL) & O_NONBLOCK) != 0);
  CHECK((fcntl(taken, F_GETFD) & FD_CLOEXEC) != 0);
  int delay_off = 0;
  socklen_t size = sizeof(delay_off);
  getsockopt(taken, IPPROTO_TCP, TCP_NODELAY, &delay_off, &size);
  CHECK(delay_off != 0);
}

TEST_CASE("the cap is exact whichever side closes, ten times over", "[api][acceptor]") {
  constexpr std::size_t kMax = 5;
  const bool by_server = GENERATE(false, true);
  CAPTURE(by_server);
  Taker taker(kMax);
  for (int round = 0; round < 10; ++round) {
    CAPTURE(round);
    std::vector<Descriptor> clients;
    for (std::size_t i = 0; i < kMax; ++i) {
      clients.push_back(Connect(taker.port));
    }
    REQUIRE(taker.HasTaken(kMax));
    CHECK(taker.acceptor->open() == kMax);
    CHECK(Ends(Connect(taker.port), 5000));
    CHECK(taker.acceptor->refused() == round + 1);
    for (const Descriptor& client : clients) {
      CHECK_FALSE(Ends(client, 1));
    }
    if (!by_server) {
      clients.clear();  // and connect again at once
    }
    taker.CloseAll();
  }
  CHECK(Eventually([&] { return taker.acceptor->open() == 0; }));
}

// Not where undefined behaviour is watched: that check opens a pipe, and ends the process where it
// cannot.
#ifndef __SANITIZE_ADDRESS__
TEST_CASE("without descriptors who comes is told, and who comes later is taken",
          "[api][acceptor]") {
  const testing::LogCapture log;
  Taker taker(1000);
  std::vector<Descriptor> clients;
  for (int i = 0; i < 40; ++i) {  // sockets first: they are this process's, too
    clients.emplace_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  }
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  rlimit low = before;
  low.rlim_cur = static_cast<rlim_t>(clients.back().number()) + 20;
  REQUIRE(setrlimit(RLIMIT_NOFILE, &low) == 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(taker.port));
  const auto began = std::chrono::steady_clock::now();
  const Acceptor& acceptor = *taker.acceptor;
  std::int64_t ended = 0;
  for (std::int64_t i = 0; i < 40; ++i) {
    const Descriptor& client = clients[static_cast<std::size_t>(i)];
    const auto* raw = reinterpret_cast<const sockaddr*>(&address);
    REQUIRE(connect(client.number(), raw, sizeof(address)) == 0);
    REQUIRE(Eventually([&] { return acceptor.open() + acceptor.refused() == i + 1; }));
    CHECK(Ends(client, acceptor.refused() > ended ? 5000 : 1) == (acceptor.refused() > ended));
    ended = acceptor.refused();
  }
  CHECK(ended >= 20);
  CHECK(taker.acceptor->open() == 40 - ended);
  clients.clear();
  taker.CloseAll();
  CHECK(Eventually([&] { return taker.acceptor->open() == 0; }));
  const Descriptor later = Connect(taker.port);
  CHECK(taker.HasTaken(1));
  setrlimit(RLIMIT_NOFILE, &before);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - began;
  const std::size_t lines = log.Lines("connection refused").size();
  CHECK(lines >= 1);
  CHECK(static_cast<double>(lines) <= passed.count() + 1);  // one a second
}
#endif

TEST_CASE("under gRPC a half preface and a silent client are closed and make room",
          "[api][acceptor]") {
  constexpr std::chrono::hours kHandshake{1};  // of a clock that the test moves
  testing::MovedClock clock;
  TestServerOptions options;
  options.clock = &clock;
  options.listen.connections_max = 3;
  options.listen.handshake_ms_max = std::chrono::milliseconds(kHandshake).count();
  TestServer server(options);
  const auto channel = server.NewChannel();
  const auto works = [&] {
    grpc::ClientContext rpc;
    v1::Load load;
    return v1::AdminService::NewStub(channel)->GetLoad(&rpc, {}, &load).ok();
  };
  REQUIRE(works());
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    const Descriptor silent = Connect(server.server().port());
    const Descriptor half = Connect(server.server().port());
    send(half.number(), kPreface, 10, MSG_NOSIGNAL);
    const Descriptor surplus = Connect(server.server().port());
    CHECK(Ends(surplus, 5000));
    CHECK(server.server().acceptor().open() == 3);
    CHECK(works());
    clock.Move(kHandshake);
    CHECK(Ends(silent, 5000));
    CHECK(Ends(half, 5000));
    CHECK(Eventually([&] { return server.server().acceptor().open() == 1; }));
  }
  // What is no HTTP/2 at all is closed by gRPC at once.
  const Descriptor wrong = Connect(server.server().port());
  send(wrong.number(), "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL);
  CHECK(Ends(wrong, 5000));
  CHECK(Eventually([&] { return server.server().acceptor().open() == 1; }));
  CHECK(works());
}

TEST_CASE("under gRPC the cap is filled and refilled by real clients", "[api][acceptor]") {
  constexpr int kMax = 4;
  TestServerOptions options;
  options.listen.connections_max = kMax;
  TestServer server(options);
  const auto works = [](const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext rpc;
    rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::Load load;
    return v1::AdminService::NewStub(channel)->GetLoad(&rpc, {}, &load).ok();
  };
  for (int round = 0; round < 10; ++round) {
    CAPTURE(round);
    std::vector<std::shared_ptr<grpc::Channel>> channels;
    for (int i = 0; i < kMax; ++i) {
      channels.push_back(server.NewChannel());
      CHECK(works(channels.back()));
    }
    CHECK(server.server().acceptor().open() == kMax);
    CHECK(Ends(Connect(server.server().port()), 5000));
    for (const auto& channel : channels) {
      CHECK(works(channel));
    }
    channels.clear();
    // A library closes in its own time.
    CHECK(Eventually([&] { return server.server().acceptor().open() == 0; }));
  }
}

// Each on a connection of its own: gRPC may close one whose headers are over its limit.
TEST_CASE("under gRPC too many headers are refused", "[api][acceptor]") {
  TestServer server;
  const auto call = [&](std::size_t header_bytes) {
    const auto stub = v1::AdminService::NewStub(server.NewChannel());
    grpc::ClientContext rpc;
    rpc.AddMetadata("x-much", std::string(header_bytes, 'm'));
    rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::Load load;
    return stub->GetLoad(&rpc, {}, &load).error_code();
  };
  CHECK(call(10'000) == grpc::StatusCode::OK);
  CHECK(call(20'000) == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(call(10) == grpc::StatusCode::OK);
  CHECK(server.server().acceptor().told_off() == 0);
  // Over the guard's; the client may try it again by itself.
  CHECK(call(100'000) == grpc::StatusCode::UNAVAILABLE);
  CHECK(server.server().acceptor().told_off() >= 1);
  CHECK(call(10) == grpc::StatusCode::OK);
}

TEST_CASE("a drain closes the acceptor; what is open goes on", "[api][acceptor]") {
  TestServer server;
  const auto channel = server.NewChannel();
  const auto stub = v1::AdminService::NewStub(channel);
  v1::Load load;
  {
    grpc::ClientContext rpc;
    REQUIRE(stub->GetLoad(&rpc, {}, &load).ok());
  }
  const std::int64_t port = server.server().port();
  server.server().BeginDrain();
  CHECK_FALSE(Connect(port).ok());
  grpc::ClientContext rpc;
  CHECK(stub->GetLoad(&rpc, {}, &load).ok());
}

TEST_CASE("every form of address serves the clients that name it so", "[api][acceptor]") {
  const std::string path = fmt::format("/tmp/dsa_acceptor_test_{}.sock", getpid());
  const std::string host =
      GENERATE_COPY(as<std::string>(), "127.0.0.1", "::1", "localhost", "unix:" + path);
  CAPTURE(host);
  const auto ipv6 = OpenListenSockets("::1", 0);
  if (!ipv6.ok() && host == "::1") {
    WARN("this machine has no IPv6");
    return;
  }
  TestServerOptions options;
  options.listen.host = host;
  options.listen.port = 0;
  {
    TestServer server(options);
    std::vector<std::string> names = {AddressText(host, server.server().port())};
    if (host == "localhost") {
      names.push_back(AddressText("127.0.0.1", server.server().port()));
      if (ipv6.ok()) {
        names.push_back(AddressText("::1", server.server().port()));
      }
    }
    for (const std::string& name : names) {
      CAPTURE(name);
      const auto channel = grpc::CreateChannel(name, grpc::InsecureChannelCredentials());
      grpc::ClientContext rpc;
      v1::Load load;
      CHECK(v1::AdminService::NewStub(channel)->GetLoad(&rpc, {}, &load).ok());
    }
    if (host.starts_with("unix:")) {
      CHECK(ProbeListen(host, 0).error().message ==
            "listen: " + host + " cannot be bound: another program listens there");
    }
  }
  CHECK(access(path.c_str(), F_OK) != 0);  // removed
}

TEST_CASE("a path is taken from a socket that is dead, and from nothing else", "[api][acceptor]") {
  const std::string path = fmt::format("/tmp/dsa_path_test_{}.sock", getpid());
  const std::string host = "unix:" + path;
  {
    // As after SIGKILL: the socket lies there, and nobody listens.
    Result<ListenSockets> dead = OpenListenSockets(host, 0);
    REQUIRE(dead.ok());
  }
  CHECK(access(path.c_str(), F_OK) == 0);
  CHECK(ProbeListen(host, 0).ok());
  const Descriptor file(open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  REQUIRE(file.ok());
  CHECK_FALSE(ProbeListen(host, 0).ok());
  struct stat there {};
  CHECK(stat(path.c_str(), &there) == 0);
  CHECK(S_ISREG(there.st_mode));
  unlink(path.c_str());
  for (const std::string& bad : {std::string("unix:relative"), "unix:/" + std::string(200, 'x'),
                                 std::string("unix:/no/such/folder/x")}) {
    CAPTURE(bad);
    CHECK(ProbeListen(bad, 0).error().code == ErrorCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace dsa::acceptor_test
