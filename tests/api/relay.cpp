#include "tests/api/relay.h"

#include "common/check.h"

#include <array>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace dsa::testing {
namespace {

sockaddr_in Loopback(std::int64_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

}  // namespace

Relay::Relay(std::int64_t server_port)
    : server_port_(server_port), listener_(socket(AF_INET, SOCK_STREAM, 0)) {
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  const bool listens = bind(listener_, generic, size) == 0 && listen(listener_, 16) == 0 &&
                       getsockname(listener_, generic, &size) == 0;
  DSA_CHECK(listens, "Relay: cannot listen");
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { Accept(); });
}

Relay::~Relay() {
  shutdown(listener_, SHUT_RDWR);  // ends accept
  acceptor_.join();
  Cut();
  for (std::thread& thread : threads_) {
    thread.join();
  }
  for (const int socket : sockets_) {
    close(socket);
  }
  close(listener_);
}

void Relay::Cut() {
  const std::lock_guard lock(mutex_);
  for (const int socket : sockets_) {
    shutdown(socket, SHUT_RDWR);
  }
}

void Relay::Accept() {
  while (true) {
    const int client = accept(listener_, nullptr, nullptr);
    if (client < 0) {
      return;
    }
    const int server = socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in address = Loopback(server_port_);
    const bool connected =
        connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
    {
      const std::lock_guard lock(mutex_);
      sockets_.push_back(client);
      sockets_.push_back(server);
    }
    if (!connected) {
      shutdown(client, SHUT_RDWR);
      continue;
    }
    threads_.emplace_back([this, client, server] { Forward(client, server); });
    threads_.emplace_back([this, client, server] { Forward(server, client); });
  }
}

void Relay::Forward(int from, int to) const {
  std::array<char, 64 << 10> bytes;
  while (true) {
    const ssize_t got = recv(from, bytes.data(), bytes.size(), 0);
    if (got <= 0) {
      break;
    }
    for (ssize_t sent = 0; sent < got;) {
      const ssize_t now =
          send(to, bytes.data() + sent, static_cast<std::size_t>(got - sent), MSG_NOSIGNAL);
      if (now <= 0) {
        return;
      }
      sent += now;
    }
  }
  shutdown(to, SHUT_RDWR);
}

}  // namespace dsa::testing
