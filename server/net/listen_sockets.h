// The sockets that a server listens on, and whether it could, asked before a model is loaded for
// minutes.
//
// `host` is a name or an address without brackets and stands for all the addresses that it resolves
// to ("localhost" for both families, "::" for every address of both); or it is "unix:/path", and
// the port is 0.
#pragma once

#include "common/descriptor.h"
#include "common/status.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

inline constexpr std::string_view kUnixPrefix = "unix:";

// "127.0.0.1:50051", "[::1]:50051", "unix:/run/dsa.sock"
std::string AddressText(const std::string& host, std::int64_t port);

// Binds as the server will and lets go at once; never listens.  INVALID_ARGUMENT naming the address
// and the reason where a socket listens there already, at any of the addresses that `host` stands
// for, or where none of them can be bound.  Another process may still come in between: the server's
// own bind decides.
Status ProbeListen(const std::string& host, std::int64_t port);

struct ListenSockets {
  std::vector<Descriptor> sockets;  // listening, non-blocking; at least one
  std::int64_t port = 0;            // of all of them; 0 for a path
  std::string path;                 // of a unix socket: whoever closes it removes it
};

// Listens.  Port 0: one that is free, the same for all addresses.  A path where a socket lies that
// nobody listens on any more is taken over.  Errors as ProbeListen.
Result<ListenSockets> OpenListenSockets(const std::string& host, std::int64_t port);

}  // namespace dsa
