// Addresses of servers, as commands that talk to one take them.
#pragma once

#include "common/status.h"

#include <string>
#include <string_view>

namespace CLI {  // NOLINT(readability-identifier-naming): the library's name
class Validator;
}

namespace dsa {

// Takes HOST:PORT with a port in [1, 65535], [IPV6]:PORT and unix:/PATH, and nothing that a client
// would complete by a port of its own.
CLI::Validator ServerAddress();

// Where the `dsa serve` of a process listens, by its command line, its --config file among it: what
// a check beside it, such as a container's, asks.  INVALID_ARGUMENT where the process is none, or
// where only its log knows the port.
Result<std::string> AddressOfProcess(int process);

// The same of a command line, its words ended by NUL, as /proc has it.  A relative --config file is
// looked for in `folder`.
Result<std::string> AddressOfCommandLine(std::string_view words, const std::string& folder);

}  // namespace dsa
