// How many connections the process's descriptors suffice for, and whether who takes them gets on.
#pragma once

#include "common/status.h"
#include "server/net/acceptor.h"
#include "server/watchdog.h"

#include <cstdint>

namespace dsa {

// Of each of `servers`: 1 is gRPC alone, 2 with HTTP.  `configured`: max_connections, 0 for the
// default, which adapts to `descriptors`, all that the process may have open.  FAILED_PRECONDITION
// with both numbers where what was configured does not fit, or not even one connection does.
Result<std::int64_t> ChooseConnectionsMax(std::int64_t configured, std::int64_t servers,
                                          std::int64_t descriptors);

// For the watchdog: an acceptor has work while it is within a round.
inline Activity ActivityOf(const AcceptorProgress& progress) {
  return {.done = progress.rounds, .waiting = progress.working, .estimate_us = 0};
}

}  // namespace dsa
