#include "server/net/listen_sockets.h"

#include <cerrno>
#include <cstring>
#include <memory>

#include <fmt/core.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace dsa {
namespace {

constexpr char kTaken[] = "another program listens there";

struct Address {
  sockaddr_storage bytes{};
  socklen_t size = 0;
};

Error Refusal(const std::string& host, std::int64_t port, std::string_view reason) {
  return InvalidArgument(
      fmt::format("listen: {} cannot be bound: {}", AddressText(host, port), reason));
}

bool IsPath(const std::string& host) {
  return host.starts_with(kUnixPrefix);
}

// Appends the addresses of one name; nullptr, or why there are none.
const char* Append(const char* name, std::vector<Address>& addresses) {
  addrinfo wanted{};
  wanted.ai_flags = AI_PASSIVE;
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(name, nullptr, &wanted, &found);
  if (failed != 0) {
    return gai_strerror(failed);
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owned(found, &freeaddrinfo);
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    Address& address = addresses.emplace_back();
    std::memcpy(&address.bytes, one->ai_addr, one->ai_addrlen);
    address.size = one->ai_addrlen;
  }
  return nullptr;
}

Result<std::vector<Address>> Resolve(const std::string& host, std::int64_t port) {
  std::vector<Address> addresses;
  if (host == "localhost") {  // both families, whatever the machine's list of hosts has
    Append("127.0.0.1", addresses);
    Append("::1", addresses);
    return addresses;
  }
  const char* const failed = Append(host.c_str(), addresses);
  return failed == nullptr ? Result<std::vector<Address>>(std::move(addresses))
                           : Refusal(host, port, failed);
}

void SetPort(sockaddr_storage& address, std::int64_t port) {
  const auto number = htons(static_cast<std::uint16_t>(port));
  if (address.ss_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6&>(address).sin6_port = number;
  } else {
    reinterpret_cast<sockaddr_in&>(address).sin_port = number;
  }
}

std::int64_t PortOf(int socket_fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  getsockname(socket_fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

// A bound socket, or an error number.
struct Bound {
  Descriptor socket;
  int error = 0;
};

Bound Bind(Address address, std::int64_t port) {
  const int family = address.bytes.ss_family;
  Bound bound{.socket = Descriptor(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0))};
  if (!bound.socket.ok()) {
    bound.error = errno;
    return bound;
  }
  // With it the kernel refuses beside a listening socket, whatever options that one has, but not
  // beside closed connections of an earlier server.
  const int on = 1;
  setsockopt(bound.socket.number(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (family == AF_INET6) {
    // [::] is every address of both families, any other one is itself.
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address.bytes);
    const int only = IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr) ? 0 : 1;
    setsockopt(bound.socket.number(), IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only));
  }
  SetPort(address.bytes, port);
  const auto* raw = reinterpret_cast<const sockaddr*>(&address.bytes);
  bound.error = bind(bound.socket.number(), raw, address.size) == 0 ? 0 : errno;
  return bound;
}

// Binds all addresses, at the port of the first where `port` is 0.  An address that this machine
// does not have is left out as long as there is another; one that is taken is an error number.
struct BoundAll {
  ListenSockets listening;
  int error = 0;
};

BoundAll BindAll(const std::vector<Address>& addresses, std::int64_t port) {
  BoundAll all{.listening = {.sockets = {}, .port = port, .path = {}}};
  int first_error = 0;
  for (const Address& address : addresses) {
    Bound bound = Bind(address, all.listening.port);
    if (bound.error == 0) {
      all.listening.port = PortOf(bound.socket.number());
      all.listening.sockets.push_back(std::move(bound.socket));
    } else if (bound.error == EADDRINUSE) {
      all.error = EADDRINUSE;
      return all;
    }
    first_error = first_error == 0 ? bound.error : first_error;
  }
  all.error = all.listening.sockets.empty() ? first_error : 0;
  return all;
}

const char* Reason(int error) {
  return error == EADDRINUSE ? kTaken : std::strerror(error);
}

Result<sockaddr_un> UnixAddress(const std::string& host) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = host.substr(kUnixPrefix.size());
  if (path.empty() || path.front() != '/' || path.size() >= sizeof(address.sun_path)) {
    return Refusal(
        host, 0,
        fmt::format("a path begins with / and has at most {} bytes", sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

// Whether `path` can be taken: 0, or an error number.  A socket that nobody listens on is removed.
int ClearPath(const sockaddr_un& address) {
  const Descriptor client(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto* raw = reinterpret_cast<const sockaddr*>(&address);
  if (connect(client.number(), raw, sizeof(address)) == 0) {
    return EADDRINUSE;
  }
  if (errno != ECONNREFUSED) {
    return errno == ENOENT ? 0 : errno;
  }
  struct stat file {};
  if (stat(address.sun_path, &file) != 0 || !S_ISSOCK(file.st_mode)) {
    return EEXIST;  // somebody's file
  }
  return unlink(address.sun_path) == 0 ? 0 : errno;
}

Result<ListenSockets> BindPath(const std::string& host) {
  DSA_ASSIGN_OR_RETURN(const sockaddr_un address, UnixAddress(host));
  int error = ClearPath(address);
  ListenSockets listening;
  listening.path = address.sun_path;
  listening.sockets.emplace_back(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto* raw = reinterpret_cast<const sockaddr*>(&address);
  if (error == 0 && bind(listening.sockets[0].number(), raw, sizeof(address)) != 0) {
    error = errno;
  }
  if (error != 0) {
    return Refusal(host, 0, Reason(error));
  }
  return listening;
}

}  // namespace

std::string AddressText(const std::string& host, std::int64_t port) {
  if (IsPath(host)) {
    return host;
  }
  const bool is_v6 = host.find(':') != std::string::npos;
  return is_v6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

Status ProbeListen(const std::string& host, std::int64_t port) {
  if (IsPath(host)) {
    DSA_ASSIGN_OR_RETURN(const ListenSockets bound, BindPath(host));
    unlink(bound.path.c_str());
    return {};
  }
  DSA_ASSIGN_OR_RETURN(const std::vector<Address> addresses, Resolve(host, port));
  const int error = BindAll(addresses, port).error;
  return error == 0 ? Status() : Status(Refusal(host, port, Reason(error)));
}

Result<ListenSockets> OpenListenSockets(const std::string& host, std::int64_t port) {
  constexpr int kPortTries = 16;  // a port that the first address has free and another has not
  ListenSockets listening;
  if (IsPath(host)) {
    DSA_ASSIGN_OR_RETURN(listening, BindPath(host));
  } else {
    DSA_ASSIGN_OR_RETURN(const std::vector<Address> addresses, Resolve(host, port));
    BoundAll all = BindAll(addresses, port);
    for (int i = 1; i < kPortTries && port == 0 && all.error == EADDRINUSE; ++i) {
      all = BindAll(addresses, port);
    }
    if (all.error != 0) {
      return Refusal(host, port, Reason(all.error));
    }
    listening = std::move(all.listening);
  }
  for (const Descriptor& one : listening.sockets) {
    if (listen(one.number(), SOMAXCONN) != 0) {
      return Refusal(host, port, Reason(errno));
    }
  }
  return listening;
}

}  // namespace dsa
