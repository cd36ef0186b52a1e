#include "server/grpc/error_details.h"

#include "proto/google/rpc/status.pb.h"
#include "server/api/errors.h"

#include <string_view>

namespace dsa {
namespace {

constexpr std::string_view kDomain = "dsa";

// google.rpc writes them in capitals.
std::string Reason(ErrorCode code) {
  std::string reason(ReasonOf(code));
  for (char& c : reason) {
    c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  }
  return reason;
}

}  // namespace

std::string ErrorDetails(int code, const Error& error) {
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(error.message);
  google::rpc::ErrorInfo info;
  info.set_reason(Reason(error.code));
  info.set_domain(std::string(kDomain));
  status.add_details()->PackFrom(info);
  if (const std::string_view field = FieldOf(error); !field.empty()) {
    google::rpc::BadRequest bad;
    google::rpc::BadRequest::FieldViolation& violation = *bad.add_field_violations();
    violation.set_field(std::string(field));
    const std::size_t value = error.message.find_first_not_of(' ', field.size() + 1);
    violation.set_description(value == std::string::npos ? "" : error.message.substr(value));
    violation.set_reason(info.reason());
    status.add_details()->PackFrom(bad);
  }
  if (const std::int64_t seconds = RetryAfterSeconds(error.code); seconds > 0) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(seconds);
    status.add_details()->PackFrom(retry);
  }
  return status.SerializeAsString();
}

}  // namespace dsa
