// The HTTP server in this process, over the real engine with steps that a test steers, or over an
// engine that says what a test tells it.
#pragma once

#include "server/http/http_server.h"
#include "tests/api/fake_engine.h"
#include "tests/engine/stepped_engine.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

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

// JSON of an answer, as common/json.h has it.  Fails the case where it is none.
nlohmann::ordered_json MustParse(const std::string& text);

// Of a stream that went well "[DONE]" is the last event, of one that failed there is none.
enum class StreamEnd : std::uint8_t { kDone, kFailed };

// The events of a stream but for "[DONE]".  Fails the case where the body is anything else.
std::vector<nlohmann::ordered_json> ParseEvents(const std::string& body,
                                                StreamEnd end = StreamEnd::kDone);

}  // namespace dsa::testing
