#include "server/grpc/call_info.h"

#include "server/api/errors.h"
#include "server/api/service_context.h"

#include <array>

#include <fmt/format.h>
#include <grpc/support/time.h>

namespace dsa {

std::optional<MonotonicUs> DeadlineUs(const grpc::CallbackServerContext& rpc, const Clock& clock) {
  const gpr_timespec deadline = rpc.raw_deadline();
  if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0) {
    return std::nullopt;
  }
  const gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
  constexpr std::int64_t kUsPerSecond = 1'000'000;
  constexpr std::int64_t kNsPerUs = 1'000;
  constexpr std::int64_t kSecondsMax = std::int64_t{1} << 40;  // later than that is never
  if (left.tv_sec >= kSecondsMax) {
    return std::nullopt;
  }
  return clock.NowUs() + left.tv_sec * kUsPerSecond + left.tv_nsec / kNsPerUs;
}

std::string ClientRequestId(const grpc::CallbackServerContext& rpc) {
  const auto found = rpc.client_metadata().find(kRequestIdHeader);
  if (found == rpc.client_metadata().end()) {
    return "";
  }
  return {found->second.data(), found->second.size()};
}

void AddMetadata(grpc::CallbackServerContext& rpc, Place place, const CallNames& names) {
  const auto add = [&](const char* key, const std::string& value) {
    if (place == Place::kFront) {
      rpc.AddInitialMetadata(key, value);
    } else {
      rpc.AddTrailingMetadata(key, value);
    }
  };
  add(kInstanceHeader, names.instance);
  if (!names.request_id.empty()) {
    add(kRequestIdHeader, names.request_id);
  }
}

void AddRetryMetadata(grpc::CallbackServerContext& rpc, const Error& error) {
  constexpr const char* kRetryPushbackHeader = "grpc-retry-pushback-ms";
  constexpr std::int64_t kMsPerSecond = 1000;
  if (error.code == ErrorCode::kResourceExhausted) {
    rpc.AddTrailingMetadata(kRetryPushbackHeader,
                            fmt::to_string(RetryAfterSeconds(error.code) * kMsPerSecond));
  }
}

std::string_view CodeName(grpc::StatusCode code) {
  static constexpr std::array<std::string_view, 17> kNames = {"OK",
                                                              "CANCELLED",
                                                              "UNKNOWN",
                                                              "INVALID_ARGUMENT",
                                                              "DEADLINE_EXCEEDED",
                                                              "NOT_FOUND",
                                                              "ALREADY_EXISTS",
                                                              "PERMISSION_DENIED",
                                                              "RESOURCE_EXHAUSTED",
                                                              "FAILED_PRECONDITION",
                                                              "ABORTED",
                                                              "OUT_OF_RANGE",
                                                              "UNIMPLEMENTED",
                                                              "INTERNAL",
                                                              "UNAVAILABLE",
                                                              "DATA_LOSS",
                                                              "UNAUTHENTICATED"};
  const auto index = static_cast<std::size_t>(code);
  return index < kNames.size() ? kNames[index] : "UNKNOWN";
}

}  // namespace dsa
