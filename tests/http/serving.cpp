#include "tests/http/serving.h"

#include "common/check.h"
#include "server/engine/wakeup.h"
#include "tests/paths.h"

#include <chrono>
#include <string>
#include <utility>

namespace dsa::testing {
namespace {

constexpr std::int64_t kContextTokens = 4096;
constexpr std::int32_t kVocabulary = 129280;

ServedModel Model(const Tokenizer* tokenizer) {
  ServedModel model;
  model.id = "m";
  model.model_type = "deepseek_v32";
  model.context_length = kContextTokens;
  model.vocabulary = kVocabulary;
  model.layers = 4;
  model.index_topk = 64;
  model.max_tokens_default = 100;
  if (tokenizer != nullptr) {
    model.chat_format = ChatFormat::kV32;
  }
  return model;
}

EngineConfig Config(std::int64_t waiting_max) {
  constexpr std::int64_t kSequences = 16;
  constexpr std::int32_t kTokensPerBlock = 64;
  return {.scheduler = {.step_tokens_max = 2048,
                        .sequences_max = kSequences,
                        .waiting_max = waiting_max,
                        .context_tokens_max = kContextTokens,
                        .index_topk = 64},
          .blocks = kSequences * kContextTokens / kTokensPerBlock,
          .tokens_per_block = kTokensPerBlock,
          .vocabulary = kVocabulary,
          .end_ids = {},
          .cache_identity = "test",
          .hash_bits = 256};
}

}  // namespace

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
    : context_(new ServiceContext{
          .engine = engine,
          .clock = clock_,
          .tokenizer = tokenizer,
          .model = Model(tokenizer),
          .server = {.version = "9", .device = "cpu", .configuration_json = "{}", .ready_us = 0},
          .slow_client = slow_client,
          .draining = false,
          .request_ids = {},
          .open_calls = {},
          .workers = {}}) {
  Result<std::unique_ptr<HttpServer>> server = HttpServer::Start(config, *context_);
  DSA_CHECK(server.ok(), "HttpServing: {}", server.error().message);
  server_ = std::move(server).value();
}

SteppedEngine::SteppedEngine(std::int64_t waiting_max)
    : loop_(std::make_unique<EngineLoop>(
          Config(waiting_max),
          EngineLoop::Dependencies{
              .executor = executor_, .clock = clock_, .decoders = &decoders_})) {
  executor_.on_execute = [this](const ForwardBatch& batch) {
    executor_.faulty_row = steps_.Enter(batch.tokens);
  };
  loop_->Start();
}

SteppedEngine::~SteppedEngine() {
  steps_.Release();
  loop_->Stop();
}

bool SteppedEngine::BecomesQuiet() const {
  return BecomesTrue([this] {
    const EngineLoad load = loop_->Load();
    return load.waiting == 0 && load.running == 0 && load.blocks_referenced == 0;
  });
}

bool BecomesTrue(const std::function<bool()>& condition) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > limit) {
      return false;
    }
    Wakeup().WaitFor(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace dsa::testing
