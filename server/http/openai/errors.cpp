#include "server/http/openai/errors.h"

#include "common/json.h"

#include <algorithm>
#include <string_view>

namespace dsa {
namespace {

struct Shape {
  int status;
  std::string_view type;
  std::string_view code;
};

constexpr std::string_view kClientsMistake = "invalid_request_error";
constexpr std::string_view kServersState = "server_error";

Shape ShapeOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return {400, kClientsMistake, "invalid_value"};
    case ErrorCode::kUnimplemented: return {400, kClientsMistake, "unsupported_value"};
    case ErrorCode::kFailedPrecondition: return {400, kClientsMistake, "unsupported_by_model"};
    case ErrorCode::kNotFound: return {404, kClientsMistake, "model_not_found"};
    case ErrorCode::kAlreadyExists: return {409, kClientsMistake, "request_id_is_live"};
    case ErrorCode::kResourceExhausted: return {429, "rate_limit_error", "overloaded"};
    case ErrorCode::kCancelled: return {499, kClientsMistake, "cancelled"};
    case ErrorCode::kUnavailable: return {503, kServersState, "unavailable"};
    case ErrorCode::kDeadlineExceeded: return {504, kServersState, "deadline_exceeded"};
    case ErrorCode::kInternal: break;
  }
  return {500, kServersState, "internal_error"};
}

// "stop[1]: 300 bytes ..." is about stop[1]; a message without a field is about none.
std::string_view FieldOf(std::string_view message) {
  const std::string_view field = message.substr(0, message.find(':'));
  const bool named =
      field.size() < message.size() && std::all_of(field.begin(), field.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
               c == '[' || c == ']';
      });
  return named ? field : std::string_view();
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
  const Shape shape = ShapeOf(error.code);
  const bool about_field =
      error.code == ErrorCode::kInvalidArgument || error.code == ErrorCode::kUnimplemented ||
      error.code == ErrorCode::kNotFound || error.code == ErrorCode::kAlreadyExists;
  return Body(error.message, shape.type, about_field ? FieldOf(error.message) : "", shape.code);
}

std::string FaultErrorBody(const HttpFault& fault) {
  constexpr int kServerErrors = 500;
  return Body(fault.message, fault.status < kServerErrors ? kClientsMistake : kServersState, "",
              "bad_http");
}

HttpResponse ErrorResponse(const Error& error) {
  HttpResponse response{.status = ShapeOf(error.code).status, .body = ErrorBody(error)};
  if (error.code == ErrorCode::kResourceExhausted || error.code == ErrorCode::kUnavailable) {
    response.headers.push_back({"Retry-After", "1"});
  }
  return response;
}

}  // namespace dsa
