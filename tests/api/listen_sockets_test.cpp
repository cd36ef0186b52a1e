// An address that is taken is known before a model is loaded, and the question leaves no trace.
#include "server/net/listen_sockets.h"

#include <array>

#include <arpa/inet.h>
#include <catch2/catch.hpp>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace dsa::listen_sockets_test {
namespace {

// A TCP socket bound to a port of 127.0.0.1.
struct Bound {
  // `option` of SOL_SOCKET is switched on first; 0: none.  Port 0: one that is free.
  Bound(int option, std::uint16_t wanted) : socket_fd(socket(AF_INET, SOCK_STREAM, 0)) {
    const int on = 1;
    if (option != 0) {
      setsockopt(socket_fd, SOL_SOCKET, option, &on, sizeof(on));
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(wanted);
    auto* raw = reinterpret_cast<sockaddr*>(&address);
    socklen_t size = sizeof(address);
    REQUIRE(bind(socket_fd, raw, size) == 0);
    REQUIRE(getsockname(socket_fd, raw, &size) == 0);
    port = ntohs(address.sin_port);
  }
  ~Bound() { close(socket_fd); }
  Bound(const Bound&) = delete;
  Bound& operator=(const Bound&) = delete;

  int socket_fd;
  std::uint16_t port = 0;
};

std::uint16_t FreePort() {
  return Bound(0, 0).port;
}

}  // namespace

TEST_CASE("a port where something listens is refused, whatever its options", "[api][listen]") {
  const int option = GENERATE(0, SO_REUSEADDR, SO_REUSEPORT);
  CAPTURE(option);
  const Bound taken(option, 0);
  REQUIRE(listen(taken.socket_fd, 1) == 0);
  for (const char* host : {"127.0.0.1", "localhost", "0.0.0.0"}) {
    CAPTURE(host);
    const Status status = ProbeListen(host, taken.port);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().message == "listen: " + AddressText(host, taken.port) +
                                        " cannot be bound: another program listens there");
    CHECK(ExitCode(status.error()) == 2);
  }
}

TEST_CASE("a free port stays free", "[api][listen]") {
  const std::uint16_t port = FreePort();
  CHECK(ProbeListen("127.0.0.1", port).ok());
  CHECK(ProbeListen("127.0.0.1", port).ok());
  const Bound strict(0, port);  // would not tolerate another socket there
  CHECK(strict.port == port);
  CHECK(ProbeListen("127.0.0.1", 0).ok());
}

TEST_CASE("connections that an earlier server closed do not make a port busy", "[api][listen]") {
  std::uint16_t port = 0;
  {
    const Bound server(SO_REUSEADDR, 0);
    port = server.port;
    REQUIRE(listen(server.socket_fd, 1) == 0);
    const Bound client(0, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    REQUIRE(connect(client.socket_fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    const int accepted = accept(server.socket_fd, nullptr, nullptr);
    REQUIRE(accepted >= 0);
    close(accepted);  // first, so that this side keeps the port for a while
    std::array<char, 1> byte{};
    CHECK(recv(client.socket_fd, byte.data(), byte.size(), 0) == 0);
  }
  CHECK(ProbeListen("127.0.0.1", port).ok());
}

// Whether a client of this family reaches a port of this machine.
bool Reaches(int family, std::int64_t port) {
  const int client = socket(family, SOCK_STREAM, 0);
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  v4.sin_port = htons(static_cast<std::uint16_t>(port));
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_addr = in6addr_loopback;
  v6.sin6_port = v4.sin_port;
  const bool reached = family == AF_INET
                           ? connect(client, reinterpret_cast<sockaddr*>(&v4), sizeof(v4)) == 0
                           : connect(client, reinterpret_cast<sockaddr*>(&v6), sizeof(v6)) == 0;
  close(client);
  return reached;
}

TEST_CASE("0.0.0.0 is every address of IPv4 and none of IPv6", "[api][listen]") {
  const ListenSockets v4 = std::move(OpenListenSockets("0.0.0.0", 0)).value();
  CHECK(Reaches(AF_INET, v4.port));
  CHECK_FALSE(Reaches(AF_INET6, v4.port));
  const Result<ListenSockets> both = OpenListenSockets("::", 0);
  if (both.ok()) {  // a machine without IPv6 has no such address
    CHECK(Reaches(AF_INET, both.value().port));
    CHECK(Reaches(AF_INET6, both.value().port));
  }
}

TEST_CASE("an address that cannot be this machine's is refused", "[api][listen]") {
  const Status foreign = ProbeListen("192.0.2.1", FreePort());  // for documents, no machine has it
  REQUIRE_FALSE(foreign.ok());
  CHECK(foreign.error().message.find("192.0.2.1") != std::string::npos);
  CHECK(ExitCode(foreign.error()) == 2);
  CHECK(AddressText("::1", 7) == "[::1]:7");
}

}  // namespace dsa::listen_sockets_test
