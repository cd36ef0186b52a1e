// How many connections the process's descriptors suffice for.
#pragma once

#include "common/status.h"

#include <cstdint>

namespace dsa {

// Of each of `servers`: 1 is gRPC alone, 2 with HTTP.  `configured`: max_connections, 0 for the
// default, which adapts to `descriptors`, all that the process may have open.  FAILED_PRECONDITION
// with both numbers where what was configured does not fit, or not even one connection does.
Result<std::int64_t> ChooseConnectionsMax(std::int64_t configured, std::int64_t servers,
                                          std::int64_t descriptors);

}  // namespace dsa
