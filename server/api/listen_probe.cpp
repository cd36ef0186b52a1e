#include "server/api/listen_probe.h"

#include <cerrno>
#include <cstring>
#include <memory>

#include <fmt/core.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace dsa {
namespace {

// The error number of a bind that is undone at once; 0: none.
int TryBind(const addrinfo& address) {
  const int socket_fd = socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, 0);
  if (socket_fd < 0) {
    return errno;
  }
  // As gRPC does.  With it the kernel refuses beside a listening socket, whatever options that one
  // has, but not beside closed connections of an earlier server.
  const int on = 1;
  setsockopt(socket_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (address.ai_family == AF_INET6) {
    const int off = 0;  // [::] is every address of both families
    setsockopt(socket_fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  }
  const int error = bind(socket_fd, address.ai_addr, address.ai_addrlen) == 0 ? 0 : errno;
  close(socket_fd);
  return error;
}

}  // namespace

std::string AddressText(const std::string& host, std::int64_t port) {
  const bool is_v6 = host.find(':') != std::string::npos;
  return is_v6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

Status ProbeListen(const std::string& host, std::int64_t port) {
  const auto refuse = [&](const char* reason) {
    return InvalidArgument(
        fmt::format("listen: {} cannot be bound: {}", AddressText(host, port), reason));
  };
  addrinfo wanted{};
  wanted.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wanted, &found);
  if (failed != 0) {
    return refuse(gai_strerror(failed));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, &freeaddrinfo);
  bool any_bound = false;
  int first_error = 0;
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    const int error = TryBind(*address);
    if (error == EADDRINUSE) {
      return refuse("another program listens there");
    }
    any_bound = any_bound || error == 0;
    first_error = first_error == 0 ? error : first_error;
  }
  if (!any_bound) {
    return refuse(std::strerror(first_error));
  }
  return {};
}

}  // namespace dsa
