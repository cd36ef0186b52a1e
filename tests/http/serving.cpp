#include "tests/http/serving.h"

#include "common/check.h"
#include "tests/paths.h"

#include <utility>

namespace dsa::testing {
const Tokenizer& ChatTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      std::move(Tokenizer::Load(SourcePath("tests/fixtures/deepseek_v3_tokenizer/tokenizer.json")))
          .value();
  return *tokenizer;
}

HttpServerConfig FreePort() {
  HttpServerConfig config;
  config.port = 0;
  return config;
}

HttpServing::HttpServing(Engine& engine, const Tokenizer* tokenizer, const HttpServerConfig& config,
                         const SlowClientLimits& slow_client)
    : context_(MakeTestContext(engine, clock_, tokenizer, slow_client)) {
  Result<std::unique_ptr<HttpServer>> server = HttpServer::Start(config, *context_);
  DSA_CHECK(server.ok(), "HttpServing: {}", server.error().message);
  server_ = std::move(server).value();
}

}  // namespace dsa::testing
