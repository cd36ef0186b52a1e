// The HTTP server in this process, over the real engine with steps that a test steers, or over an
// engine that says what a test tells it.
#pragma once

#include "server/http/http_server.h"
#include "tests/api/fake_engine.h"
#include "tests/engine/stepped_engine.h"

#include <memory>
#include <string_view>

namespace dsa::testing {

const Tokenizer& ChatTokenizer();

// Any free port of loopback.
HttpServerConfig FreePort();

// An engine's HTTP server.  The model is "m", its context 4096, its vocabulary 129280.
class HttpServing final {
 public:
  HttpServing(Engine& engine, const Tokenizer* tokenizer, const HttpServerConfig& config,
              const SlowClientLimits& slow_client = {});

  ServiceContext& context() { return *context_; }
  HttpServer& server() { return *server_; }
  std::int64_t port() const { return server_->port(); }

 private:
  const SteadyClock clock_;
  std::unique_ptr<ServiceContext> context_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace dsa::testing
