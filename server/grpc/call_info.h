// What a call brings beside its message, and the names of headers and codes.
#pragma once

#include "common/clock.h"
#include "server/api/request_ids.h"

#include <optional>
#include <string>
#include <string_view>

#include <grpcpp/server_context.h>

namespace dsa {

// After how long a refused call may be tried again (gRFC A6).
inline constexpr const char* kRetryPushbackHeader = "grpc-retry-pushback-ms";
inline constexpr const char* kRetryPushbackMs = "1000";

// The call's deadline on `clock`; nullopt where it has none.
std::optional<MonotonicUs> DeadlineUs(const grpc::CallbackServerContext& rpc, const Clock& clock);

// x-request-id as the client sent it, or "".
std::string ClientRequestId(const grpc::CallbackServerContext& rpc);

// Such as "INVALID_ARGUMENT".
std::string_view CodeName(grpc::StatusCode code);

}  // namespace dsa
