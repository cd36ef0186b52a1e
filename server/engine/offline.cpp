#include "server/engine/offline.h"

#include "common/check.h"
#include "common/clock.h"
#include "server/engine/adjustment_rows.h"
#include "server/engine/engine_loop.h"
#include "server/engine/token_sink.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kScoreBytesMax = 64LL << 20;
constexpr std::int64_t kRequests = 1;  // running, and waiting

// Keeps what the request's deltas say.
class Collector final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& delta) override {
    for (const GeneratedToken& token : delta.tokens) {
      ids_.push_back(Value(token.id));
    }
    if (delta.finish) {
      finish_ = delta.finish;
      error_ = delta.error;
    }
  }

  bool finished() const { return finish_.has_value(); }

  Result<OfflineResult> Take() {
    if (error_) {
      return *error_;
    }
    return OfflineResult{.ids = std::move(ids_), .finish = *finish_, .prompt_logits = {}};
  }

 private:
  std::vector<std::int32_t> ids_;
  std::optional<FinishReason> finish_;
  std::optional<Error> error_;
};

// Passes steps on and keeps the logits of the prompt's positions.
class LogitsKeeper final : public StepExecutor {
 public:
  LogitsKeeper(StepExecutor& inner, std::int64_t positions, std::int64_t vocabulary)
      : inner_(inner),
        positions_(positions),
        vocabulary_(vocabulary),
        logits_(static_cast<std::size_t>(positions * vocabulary)) {}

  void Launch(const ForwardBatch& batch) override {
    batch_ = &batch;
    inner_.Launch(batch);
  }
  const StepResult& Collect() override {
    const ForwardBatch& batch = *batch_;
    const StepResult& result = inner_.Collect();
    if (!batch.copy_logits) {
      return result;
    }
    for (std::size_t i = 0; i < batch.logit_rows.size(); ++i) {
      const std::int64_t position = batch.positions[static_cast<std::size_t>(batch.logit_rows[i])];
      if (position < positions_) {
        const auto row = result.logits.begin() + static_cast<std::int64_t>(i) * vocabulary_;
        std::copy_n(row, vocabulary_, logits_.begin() + position * vocabulary_);
      }
    }
    return result;
  }

  std::vector<float> Take() { return std::move(logits_); }

 private:
  StepExecutor& inner_;
  const ForwardBatch* batch_ = nullptr;  // launched
  std::int64_t positions_;
  std::int64_t vocabulary_;
  std::vector<float> logits_;
};

struct Sizes {
  std::int64_t context;  // prompt and generated tokens
  std::int64_t step_tokens;
  std::int64_t logit_rows;
  std::int32_t blocks;
};

Result<Sizes> SizesFor(const ModelConfig& config, const OfflineOptions& options,
                       const Request& request) {
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  const std::int64_t context = prompt + request.stop.max_tokens;
  // The last generated token is never computed, so it needs no position.
  if (context - 1 > config.context_max) {
    return InvalidArgument(
        fmt::format("ids: {} tokens and {} to generate need {} positions, the model has {}", prompt,
                    request.stop.max_tokens, context - 1, config.context_max));
  }
  const std::int64_t step_tokens = std::min(options.step_tokens_max, context);
  const bool all = request.prompt_logits == PromptLogits::kAll;
  return Sizes{
      .context = context,
      .step_tokens = step_tokens,
      .logit_rows = all ? step_tokens : 1,
      .blocks = static_cast<std::int32_t>((context + kTokensPerBlock - 1) / kTokensPerBlock)};
}

EngineConfig EngineConfigFor(const ModelConfig& config, const OfflineOptions& options,
                             const Sizes& sizes) {
  EngineConfig engine;
  engine.scheduler.step_tokens_max = sizes.step_tokens;
  engine.scheduler.sequences_max = kRequests;
  engine.scheduler.waiting_max = kRequests;
  engine.scheduler.context_tokens_max = sizes.context;
  engine.scheduler.attention = config.has_indexer() ? options.attention : AttentionMode::kDense;
  engine.scheduler.index_topk = config.index_topk;
  engine.scheduler.masked_mha_until = options.masked_mha_until;
  engine.scheduler.masked_rows_min = 1;  // asked for: to be seen, not to save time
  engine.blocks = sizes.blocks;
  engine.tokens_per_block = kTokensPerBlock;
  engine.vocabulary = config.vocabulary;
  for (const std::int32_t id : config.end_ids) {
    engine.end_ids.push_back(TokenId{id});
  }
  engine.cache_identity = "offline";
  return engine;
}

}  // namespace

Result<OfflineResult> RunOffline(Backend& backend, const LoadedModel& model,
                                 const OfflineOptions& options, Request request) {
  DSA_ASSIGN_OR_RETURN(const Sizes sizes, SizesFor(model.config, options, request));
  const bool wants_logits = request.prompt_logits == PromptLogits::kAll;
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  DSA_ASSIGN_OR_RETURN(
      const std::unique_ptr<ModelExecutor> executor,
      ModelExecutor::Create(
          backend, model,
          {.limits = {.tokens_max = sizes.step_tokens,
                      .sequences_max = 1,
                      .table_rows_max = kRequests + kRequests,
                      .context_max = sizes.context,
                      .logit_rows_max = sizes.logit_rows,
                      .given_rows_max = 0,
                      .row_adjustments =
                          RowAdjustments(model.config.vocabulary, sizes.context,
                                         static_cast<std::int64_t>(model.config.end_ids.size())),
                      .masked_until = options.masked_mha_until,
                      .score_bytes_max = kScoreBytesMax,
                      .logits_rows_host = wants_logits ? sizes.logit_rows : 0},
           .blocks = sizes.blocks,
           .kv_format = options.kv_format,
           .vocabulary_limit = static_cast<std::int32_t>(model.config.vocabulary)}));
  LogitsKeeper keeper(*executor, wants_logits ? prompt : 0, model.config.vocabulary);
  const EngineConfig config = EngineConfigFor(model.config, options, sizes);
  DSA_RETURN_IF_ERROR(Validate(config));
  const SteadyClock clock;
  EngineLoop engine(config, {.executor = keeper, .clock = clock, .decoders = nullptr});
  const auto sink = std::make_shared<Collector>();
  request.id = engine.NextRequestId();
  DSA_RETURN_IF_ERROR(engine.Submit(std::move(request), sink));
  while (!sink->finished()) {
    const EngineProgress progress = engine.RunOnce();
    const std::int64_t delivered = engine.PumpOnce();
    DSA_CHECK(progress == EngineProgress::kStepped || delivered > 0,
              "RunOffline: the engine stands still");
  }
  DSA_ASSIGN_OR_RETURN(OfflineResult result, sink->Take());
  if (wants_logits) {
    result.prompt_logits = keeper.Take();
  }
  return result;
}

}  // namespace dsa
