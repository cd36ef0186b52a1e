#include "common/status.h"

namespace dsa {

std::string_view ToString(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "INVALID_ARGUMENT";
    case ErrorCode::kNotFound: return "NOT_FOUND";
    case ErrorCode::kAlreadyExists: return "ALREADY_EXISTS";
    case ErrorCode::kResourceExhausted: return "RESOURCE_EXHAUSTED";
    case ErrorCode::kUnavailable: return "UNAVAILABLE";
    case ErrorCode::kDeadlineExceeded: return "DEADLINE_EXCEEDED";
    case ErrorCode::kCancelled: return "CANCELLED";
    case ErrorCode::kUnimplemented: return "UNIMPLEMENTED";
    case ErrorCode::kFailedPrecondition: return "FAILED_PRECONDITION";
    case ErrorCode::kInternal: return "INTERNAL";
  }
  return "UNKNOWN";
}

int ExitCode(const Error& error) {
  switch (error.code) {
    case ErrorCode::kFailedPrecondition: return 3;
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kNotFound: return 2;
    default: return 1;
  }
}

}  // namespace dsa
