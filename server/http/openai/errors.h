// Our errors in OpenAI's shape.
#pragma once

#include "common/status.h"
#include "server/http/transport.h"

#include <string>

namespace dsa {

// {"error": {"message", "type", "param", "code"}}.
std::string ErrorBody(const Error& error);
std::string FaultErrorBody(const HttpFault& fault);

// The status that stands for the error's code, and when to try again where that helps.
HttpResponse ErrorResponse(const Error& error);

}  // namespace dsa
