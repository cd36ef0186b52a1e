#include "server/api/errors.h"

#include <algorithm>

#include <fmt/core.h>

namespace dsa {

Error NotSupportedError(std::string_view field, std::string_view why) {
  return {ErrorCode::kUnimplemented,
          fmt::format("{}: not supported yet{}{}", field, why.empty() ? "" : ": ", why)};
}

std::string_view ReasonOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "invalid_value";
    case ErrorCode::kUnimplemented: return "unsupported_value";
    case ErrorCode::kFailedPrecondition: return "unsupported_by_model";
    case ErrorCode::kNotFound: return "model_not_found";
    case ErrorCode::kAlreadyExists: return "request_id_is_live";
    case ErrorCode::kResourceExhausted: return "overloaded";
    case ErrorCode::kCancelled: return "cancelled";
    case ErrorCode::kUnavailable: return "unavailable";
    case ErrorCode::kDeadlineExceeded: return "deadline_exceeded";
    case ErrorCode::kInternal: break;
  }
  return "internal_error";
}

std::string_view FieldOf(const Error& error) {
  const bool about_field =
      error.code == ErrorCode::kInvalidArgument || error.code == ErrorCode::kUnimplemented ||
      error.code == ErrorCode::kNotFound || error.code == ErrorCode::kAlreadyExists;
  const std::string_view message = error.message;
  const std::string_view field = message.substr(0, message.find(':'));
  const bool named = about_field && field.size() < message.size() &&
                     std::all_of(field.begin(), field.end(), [](char c) {
                       return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' ||
                              c == '.' || c == '[' || c == ']';
                     });
  return named ? field : std::string_view();
}

std::int64_t RetryAfterSeconds(ErrorCode code) {
  return code == ErrorCode::kResourceExhausted || code == ErrorCode::kUnavailable ? 1 : 0;
}

}  // namespace dsa
