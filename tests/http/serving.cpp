#include "tests/http/serving.h"

#include "common/check.h"
#include "common/json.h"
#include "tests/paths.h"

#include <string_view>
#include <utility>

#include <catch2/catch.hpp>

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

Json MustParse(const std::string& text) {
  CAPTURE(text);
  Result<Json> json = ParseJson(text, "answer");
  REQUIRE(json.ok());
  return std::move(json).value();
}

std::vector<Json> ParseEvents(const std::string& body, StreamEnd end) {
  constexpr std::string_view kField = "data: ";
  constexpr std::string_view kBlank = "\n\n";
  constexpr std::string_view kDone = "data: [DONE]\n\n";
  CAPTURE(body);
  std::string_view rest = body;
  if (end == StreamEnd::kDone) {
    REQUIRE(rest.ends_with(kDone));
    rest.remove_suffix(kDone.size());
  }
  std::vector<Json> events;
  while (!rest.empty()) {
    REQUIRE(rest.starts_with(kField));
    const std::size_t size = rest.find(kBlank);
    REQUIRE(size != std::string_view::npos);
    events.push_back(MustParse(std::string(rest.substr(kField.size(), size - kField.size()))));
    rest.remove_prefix(size + kBlank.size());
  }
  return events;
}

}  // namespace dsa::testing
