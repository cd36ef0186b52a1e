// What a call brings beside its message, and the names of headers and codes.
#pragma once

#include "common/clock.h"
#include "common/status.h"

#include <optional>
#include <string>
#include <string_view>

#include <grpcpp/server_context.h>

namespace dsa {

// The request's id: taken from the client where its message names none and it is free and of our
// form, and echoed.
inline constexpr const char* kRequestIdHeader = "x-request-id";
// After how long a refused call may be tried again (gRFC A6).
inline constexpr const char* kRetryPushbackHeader = "grpc-retry-pushback-ms";
inline constexpr const char* kRetryPushbackMs = "1000";

// The most bytes of a client's string that a log line holds.
inline constexpr std::size_t kLoggedBytesMax = 128;

// The call's deadline on `clock`; nullopt where it has none.
std::optional<MonotonicUs> DeadlineUs(const grpc::CallbackServerContext& rpc, const Clock& clock);

// x-request-id as the client sent it, or "".
std::string ClientRequestId(const grpc::CallbackServerContext& rpc);

// Such as "INVALID_ARGUMENT".
std::string_view CodeName(grpc::StatusCode code);

// What a request gets while the server drains.
Error DrainingError();

// An allocation for this request failed; what it had is free again.
Error NoMemoryError();

}  // namespace dsa
