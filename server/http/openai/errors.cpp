#include "server/http/openai/errors.h"

#include "common/json.h"
#include "server/api/errors.h"

#include <string_view>

#include <fmt/format.h>

namespace dsa {
namespace {

struct Shape {
  int status;
  std::string_view type;
};

constexpr std::string_view kClientsMistake = "invalid_request_error";
constexpr std::string_view kServersState = "server_error";

Shape ShapeOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnimplemented:
    case ErrorCode::kFailedPrecondition: return {400, kClientsMistake};
    case ErrorCode::kNotFound: return {404, kClientsMistake};
    case ErrorCode::kAlreadyExists: return {409, kClientsMistake};
    case ErrorCode::kResourceExhausted: return {429, "rate_limit_error"};
    case ErrorCode::kCancelled: return {499, kClientsMistake};
    case ErrorCode::kUnavailable: return {503, kServersState};
    case ErrorCode::kDeadlineExceeded: return {504, kServersState};
    case ErrorCode::kInternal: break;
  }
  return {500, kServersState};
}

std::string Body(std::string_view message, std::string_view type, std::string_view param,
                 std::string_view code) {
  Json error = {{"message", message}, {"type", type}, {"param", nullptr}, {"code", code}};
  if (!param.empty()) {
    error["param"] = param;
  }
  return Json{{"error", std::move(error)}}.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

std::string ErrorBody(const Error& error) {
  return Body(error.message, ShapeOf(error.code).type, FieldOf(error), ReasonOf(error.code));
}

std::string FaultErrorBody(const HttpFault& fault) {
  constexpr int kServerErrors = 500;
  return Body(fault.message, fault.status < kServerErrors ? kClientsMistake : kServersState, "",
              "bad_http");
}

HttpResponse ErrorResponse(const Error& error) {
  HttpResponse response{.status = ShapeOf(error.code).status, .body = ErrorBody(error)};
  if (const std::int64_t seconds = RetryAfterSeconds(error.code); seconds > 0) {
    response.headers.push_back({"Retry-After", fmt::to_string(seconds)});
  }
  return response;
}

}  // namespace dsa
