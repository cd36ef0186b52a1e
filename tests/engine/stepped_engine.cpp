#include "tests/engine/stepped_engine.h"

#include "server/engine/wakeup.h"

#include <utility>

namespace dsa::testing {
namespace {

constexpr std::int64_t kTopK = 64;

ServedModel TestModel(const EngineConfig& engine, const Tokenizer* tokenizer) {
  ServedModel model;
  model.id = "m";
  model.model_type = "deepseek_v32";
  model.context_length = engine.scheduler.context_tokens_max;
  model.vocabulary = static_cast<std::int32_t>(engine.vocabulary);
  model.layers = 4;
  model.index_topk = kTopK;
  model.max_tokens_default = 100;
  if (tokenizer != nullptr) {
    model.chat_format = ChatFormat::kV32;
  }
  return model;
}

}  // namespace

EngineConfig TestEngineConfig() {
  constexpr std::int64_t kSequences = 16;
  constexpr std::int64_t kContextTokens = 4096;
  constexpr std::int32_t kTokensPerBlock = 64;
  return {.scheduler = {.step_tokens_max = 2048,
                        .sequences_max = kSequences,
                        .waiting_max = 64,
                        .context_tokens_max = kContextTokens,
                        .index_topk = kTopK},
          .blocks = kSequences * kContextTokens / kTokensPerBlock,
          .tokens_per_block = kTokensPerBlock,
          .vocabulary = 129280,
          .end_ids = {},
          .cache_identity = "test",
          .hash_bits = 256};
}

SteppedEngine::SteppedEngine(const EngineConfig& config)
    : SteppedEngine(config, std::make_unique<LetterDecoderFactory>()) {}

SteppedEngine::SteppedEngine(const EngineConfig& config,
                             std::unique_ptr<TextDecoderFactory> decoders, const Clock* clock)
    : decoders_(std::move(decoders)),
      loop_(std::make_unique<EngineLoop>(
          config, EngineLoop::Dependencies{.executor = executor_,
                                           .clock = clock == nullptr ? clock_ : *clock,
                                           .decoders = decoders_.get()})) {
  executor_.on_execute = [this](const ForwardBatch& batch) {
    executor_.faulty_row = steps_.Enter(batch.tokens);
  };
  loop_->Start();
}

void SteppedEngine::Stop() {
  steps_.Release();
  loop_->Stop();
}

bool SteppedEngine::BecomesQuiet() const {
  return Eventually([this] {
    const EngineLoad load = loop_->Load();
    return load.waiting == 0 && load.running == 0 && load.blocks_referenced == 0;
  });
}

std::unique_ptr<ServiceContext> MakeTestContext(Engine& engine, const Clock& clock,
                                                const Tokenizer* tokenizer,
                                                const SlowClientLimits& slow_client,
                                                const EngineConfig& config) {
  return std::unique_ptr<ServiceContext>(new ServiceContext{
      .engine = engine,
      .clock = clock,
      .tokenizer = tokenizer,
      .model = TestModel(config, tokenizer),
      .server = {.version = "9", .device = "cpu", .configuration_json = "{}", .ready_us = 0},
      .slow_client = slow_client,
      .draining = false,
      .answers = {},
      .request_ids = {},
      .open_calls = {},
      .workers = {}});
}

bool Eventually(const std::function<bool()>& condition) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > limit) {
      return false;
    }
    Pause(std::chrono::milliseconds(1));
  }
  return true;
}

void Pause(std::chrono::microseconds duration) {
  Wakeup().WaitFor(duration);
}

}  // namespace dsa::testing
