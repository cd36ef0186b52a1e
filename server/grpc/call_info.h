// What a call brings and gets beside its message: metadata, its deadline, the names of codes.
#pragma once

#include "common/clock.h"
#include "common/status.h"
#include "server/api/request_ids.h"

#include <optional>
#include <string>
#include <string_view>

#include <grpcpp/server_context.h>

namespace dsa {

// The call's deadline on `clock`; nullopt where it has none.
std::optional<MonotonicUs> DeadlineUs(const grpc::CallbackServerContext& rpc, const Clock& clock);

// x-request-id as the client sent it, or "".
std::string ClientRequestId(const grpc::CallbackServerContext& rpc);

// In front of the first message, or behind where there is none: a header before an error would keep
// clients from trying again.
enum class Place : std::uint8_t { kFront, kBehind };

struct CallNames {
  std::string request_id;  // "": none
  std::string instance;    // of the server
};

void AddMetadata(grpc::CallbackServerContext& rpc, Place place, const CallNames& names);

// After how long the call may be tried again (gRFC A6), where it was refused for lack of room.
void AddRetryMetadata(grpc::CallbackServerContext& rpc, const Error& error);

// Such as "INVALID_ARGUMENT".
std::string_view CodeName(grpc::StatusCode code);

}  // namespace dsa
