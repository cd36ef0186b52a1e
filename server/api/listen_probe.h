// Whether an address can be listened on, asked before a model is loaded for minutes.
#pragma once

#include "common/status.h"

#include <cstdint>
#include <string>

namespace dsa {

// "127.0.0.1:50051", "[::1]:50051"
std::string AddressText(const std::string& host, std::int64_t port);

// Binds as the server will and lets go at once; never listens.  INVALID_ARGUMENT naming the address
// and the reason where a socket listens there already, at any of the addresses that `host` stands
// for, or where none of them can be bound.  Another process may still come in between: the server's
// own bind decides.
Status ProbeListen(const std::string& host, std::int64_t port);

}  // namespace dsa
