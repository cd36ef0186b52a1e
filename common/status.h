// Errors that are part of normal operation: bad input, full queues, missing files.  A broken
// invariant is not one of them; that is DSA_CHECK (common/check.h).
//
//   Result<Config> Load(const std::string& path);
//   DSA_ASSIGN_OR_RETURN(const Config config, Load(path));
#pragma once

#include "common/check.h"

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace dsa {

// The subset of gRPC's status codes that we use, with the same meaning.
enum class ErrorCode {
  kInvalidArgument,    // the caller's mistake; the message names field, value and what is allowed
  kNotFound,           // an unknown model or request
  kAlreadyExists,      // a request id that is live
  kResourceExhausted,  // full now, may fit later
  kUnavailable,        // loading or draining
  kDeadlineExceeded,
  kCancelled,
  kUnimplemented,
  kFailedPrecondition,  // no such device, not enough memory: process exit code 3
  kInternal,            // non-finite logits and our own bugs that harm one request only
};

std::string_view ToString(ErrorCode code);

struct Error {
  ErrorCode code;
  std::string message;  // one line
};

inline Error InvalidArgument(std::string message) {
  return {ErrorCode::kInvalidArgument, std::move(message)};
}

// The exit code of a command that ends with this error: 3 where a device or memory is missing,
// 2 for bad input, files or configuration, 1 otherwise.
int ExitCode(const Error& error);

// A value or an Error.  Reading the value of a failed result is a bug.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return std::holds_alternative<T>(state_); }
  const Error& error() const {
    DSA_CHECK(!ok(), "Result: error() of a success");
    return std::get<Error>(state_);
  }
  T& value() & {
    DSA_CHECK(ok(), "Result: value() of a failure: {}", std::string_view(error().message));
    return std::get<T>(state_);
  }
  const T& value() const& {
    DSA_CHECK(ok(), "Result: value() of a failure: {}", std::string_view(error().message));
    return std::get<T>(state_);
  }
  T value() && {
    DSA_CHECK(ok(), "Result: value() of a failure: {}", std::string_view(error().message));
    return std::get<T>(std::move(state_));
  }

 private:
  std::variant<T, Error> state_;
};

// Success or an Error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return !error_.has_value(); }
  const Error& error() const {
    DSA_CHECK(!ok(), "Status: error() of a success");
    return *error_;
  }

 private:
  std::optional<Error> error_;
};

}  // namespace dsa

#define DSA_STATUS_CONCAT_INNER(a, b) a##b
#define DSA_STATUS_CONCAT(a, b) DSA_STATUS_CONCAT_INNER(a, b)

#define DSA_RETURN_IF_ERROR(expression)        \
  do {                                         \
    auto dsa_status = (expression);            \
    if (!dsa_status.ok()) [[unlikely]] {       \
      return ::dsa::Error(dsa_status.error()); \
    }                                          \
  } while (false)

// NOLINTBEGIN(bugprone-macro-parentheses): a declaration cannot stand in parentheses
#define DSA_ASSIGN_OR_RETURN(declaration, expression) \
  DSA_ASSIGN_OR_RETURN_AS(DSA_STATUS_CONCAT(dsa_result_, __LINE__), declaration, expression)
#define DSA_ASSIGN_OR_RETURN_AS(result, declaration, expression) \
  auto result = (expression);                                    \
  if (!result.ok()) [[unlikely]] {                               \
    return ::dsa::Error(result.error());                         \
  }                                                              \
  declaration = std::move(result).value()
// NOLINTEND(bugprone-macro-parentheses)
