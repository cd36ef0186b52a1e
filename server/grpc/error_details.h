// An error in google.rpc's messages, for the trailer grpc-status-details-bin.
#pragma once

#include "common/status.h"

#include <string>

namespace dsa {

// A google.rpc.Status of `code` with an ErrorInfo and, where they apply, a BadRequest and a
// RetryInfo.  The error's message is valid UTF-8.
std::string ErrorDetails(int code, const Error& error);

}  // namespace dsa
