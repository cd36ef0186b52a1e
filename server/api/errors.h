// Errors that any call can end with, whatever its protocol.
#pragma once

#include "common/status.h"

namespace dsa {

// What a request gets while the server drains.
inline Error DrainingError() {
  return {ErrorCode::kUnavailable, "draining: the server is shutting down"};
}

// An allocation for this request failed; what it had is free again.
inline Error NoMemoryError() {
  return {ErrorCode::kResourceExhausted, "not enough memory for this request"};
}

}  // namespace dsa
