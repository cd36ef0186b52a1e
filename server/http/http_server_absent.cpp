// Of a build without HTTP.
#include "common/check.h"
#include "server/http/http_server.h"

#include <cstdlib>

namespace dsa {

struct HttpServer::State {};

Result<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerConfig& /*config*/,
                                                      ServiceContext& /*context*/) {
  return Error{ErrorCode::kFailedPrecondition,
               "http_listen: this build has no HTTP (DSA_WITH_HTTP is off)"};
}

HttpServer::HttpServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
HttpServer::~HttpServer() = default;

std::int64_t HttpServer::port() const {
  return 0;
}

const Acceptor& HttpServer::acceptor() const {
  DSA_CHECK(false, "a build without HTTP has no acceptor of it");
  std::abort();
}

std::int64_t HttpServer::connections() const {
  return 0;
}

HttpAnswers HttpServer::AskThreads() {
  return {.count = 0, .pending = false};
}

void HttpServer::BeginDrain() {}
void HttpServer::SetStalled(bool /*stalled*/) {}
void HttpServer::Stop(std::int64_t /*limit_us*/) {}

}  // namespace dsa
