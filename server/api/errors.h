// Errors that any call can end with, and what every protocol says of an error beside its message.
#pragma once

#include "common/status.h"

#include <cstdint>
#include <string_view>

namespace dsa {

// What a request gets while the server drains.
inline Error DrainingError() {
  return {ErrorCode::kUnavailable, "draining: the server is shutting down"};
}

inline Error CancelledError() {
  return {ErrorCode::kCancelled, "cancelled by the client"};
}

// The engine may have said before when the deadline passed; this is for what it had finished.
inline Error LateError() {
  return {ErrorCode::kDeadlineExceeded, "deadline expired before the answer was sent"};
}

// An allocation for this request failed; what it had is free again.
inline Error NoMemoryError() {
  return {ErrorCode::kResourceExhausted, "not enough memory for this request"};
}

// A field whose value would change the answer, and that nothing here does.  `why`: the value and
// what is allowed, where the field may be set at all.
Error NotSupportedError(std::string_view field, std::string_view why = {});

// Why, for programs: one of a closed list (docs/errors.md), such as "invalid_value".
std::string_view ReasonOf(ErrorCode code);

// The field that an error is about, as its message names it: "stop[1]" of "stop[1]: 300 bytes ...".
// "" where it is about none.
std::string_view FieldOf(const Error& error);

// After how long a call that ended with such an error may be tried again; 0: not for time's sake.
std::int64_t RetryAfterSeconds(ErrorCode code);

}  // namespace dsa
