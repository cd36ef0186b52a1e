// The HTTP server in this process, over the real engine with steps that a test steers, or over an
// engine that says what a test tells it.
#pragma once

#include "server/engine/engine_loop.h"
#include "server/http/http_server.h"
#include "tests/api/fake_engine.h"
#include "tests/engine/step_control.h"
#include "tests/engine/testing.h"

#include <functional>
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

// Token i of a reply is (prompt length + i) % 50, its text one letter.
class SteppedEngine final {
 public:
  explicit SteppedEngine(std::int64_t waiting_max = 64);
  ~SteppedEngine();  // lets every step end, aborts what is live

  EngineLoop& loop() { return *loop_; }
  StepControl& steps() { return steps_; }
  // Waits until nothing is live and no block is referenced; false after 20 s.
  bool BecomesQuiet() const;

 private:
  const SteadyClock clock_;
  StepControl steps_;
  ScriptedExecutor executor_;
  LetterDecoderFactory decoders_;
  std::unique_ptr<EngineLoop> loop_;
};

// Waits until `condition` holds, asking every millisecond; false after 20 s.
bool BecomesTrue(const std::function<bool()>& condition);

}  // namespace dsa::testing
