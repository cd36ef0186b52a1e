#include "server/bench/step_runner.h"

#include "common/clock.h"
#include "common/prng.h"
#include "model/load_progress.h"
#include "server/bench/copying_executor.h"
#include "server/devices.h"
#include "server/engine/engine_loop.h"

#include <algorithm>
#include <utility>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kScoreBytesMax = std::int64_t{64} << 20;
constexpr std::int64_t kCopyTokensMax = std::int64_t{1} << 20;  // rows of a copying step
constexpr std::int64_t kSourceTokensMax = 512;                  // computed; what is copied from

// Notes an error; tokens do not matter.
class ErrorSink final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& delta) override {
    if (delta.error) {
      error_ = delta.error;
    }
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  std::optional<Error> error_;
};

ModelConfig WithoutIndexer(ModelConfig config) {
  config.architecture = Architecture::kDeepseekV3;
  config.index_heads = 0;
  config.index_topk = 0;
  return config;
}

}  // namespace

struct StepRunner::State {
  StepRunnerOptions options;
  ModelConfig config;
  std::int32_t blocks = 0;
  // Destroyed in reverse.
  std::unique_ptr<Backend> device;
  std::unique_ptr<TimingBackend> backend;
  DeviceWeights weights;
  std::unique_ptr<ModelExecutor> model;
  std::unique_ptr<CopyingExecutor> executor;
  SteadyClock clock;
  std::uint64_t prompts = 0;  // made so far: each has ids of its own

  EngineConfig MakeEngineConfig(std::int64_t step_tokens) const;
  Request MakeRequest(std::int64_t tokens, std::int64_t generated);
  Status Submit(EngineLoop& engine, const std::shared_ptr<ErrorSink>& sink, std::int64_t tokens,
                std::int64_t generated);
  // One step, all deltas delivered.  The executor's time of it in microseconds.
  Result<double> Step(EngineLoop& engine, const ErrorSink& sink) const;
  Status ComputeSource();
};

EngineConfig StepRunner::State::MakeEngineConfig(std::int64_t step_tokens) const {
  EngineConfig engine;
  engine.scheduler.step_tokens_max = step_tokens;
  engine.scheduler.sequences_max = options.sequences_max;
  engine.scheduler.waiting_max = options.sequences_max;
  engine.scheduler.context_tokens_max = options.context_tokens;
  engine.scheduler.attention =
      config.has_indexer() ? AttentionMode::kSparse : AttentionMode::kDense;
  engine.scheduler.index_topk = config.index_topk;
  engine.blocks = blocks;
  engine.tokens_per_block = kTokensPerBlock;
  engine.vocabulary = config.vocabulary;
  for (const std::int32_t id : config.end_ids) {
    engine.end_ids.push_back(TokenId{id});
  }
  engine.cache_identity = "bench";
  return engine;
}

Request StepRunner::State::MakeRequest(std::int64_t tokens, std::int64_t generated) {
  Request request;
  const std::uint64_t key = prompts++;
  for (std::int64_t i = 0; i < tokens; ++i) {
    const std::uint64_t bits = CounterBits(key, static_cast<std::uint64_t>(i));
    request.prompt.push_back(
        TokenId{static_cast<std::int32_t>(bits % static_cast<std::uint64_t>(config.vocabulary))});
  }
  request.external_id = fmt::format("bench-{}", key);
  request.sampling.temperature = 0;
  request.stop.max_tokens = generated;
  request.stop.ignore_end = true;
  return request;
}

Status StepRunner::State::Submit(EngineLoop& engine, const std::shared_ptr<ErrorSink>& sink,
                                 std::int64_t tokens, std::int64_t generated) {
  Request request = MakeRequest(tokens, generated);
  request.id = engine.NextRequestId();
  return engine.Submit(std::move(request), sink);
}

Result<double> StepRunner::State::Step(EngineLoop& engine, const ErrorSink& sink) const {
  const MonotonicUs start_us = clock.NowUs();
  const EngineProgress progress = engine.RunOnce();
  const MonotonicUs end_us = clock.NowUs();
  engine.PumpOnce();
  if (sink.error()) {
    return *sink.error();
  }
  DSA_CHECK(progress == EngineProgress::kStepped, "StepRunner: the engine stands still");
  return static_cast<double>(end_us - start_us);
}

// The keys that copies are made of, as the model computes them.
Status StepRunner::State::ComputeSource() {
  const std::int64_t tokens = std::min(kSourceTokensMax, options.context_tokens - 2);
  EngineLoop engine(MakeEngineConfig(options.chunk_tokens),
                    {.executor = *executor, .clock = clock, .decoders = nullptr});
  const auto sink = std::make_shared<ErrorSink>();
  executor->SetMode(CopyingExecutor::Mode::kCompute);
  DSA_RETURN_IF_ERROR(Submit(engine, sink, tokens, 1));
  executor->BeginSource();
  while (engine.Load().tokens_computed < tokens) {
    DSA_ASSIGN_OR_RETURN(const double us, Step(engine, *sink));
    (void)us;
  }
  executor->EndSource();
  return {};
}

StepRunner::StepRunner(std::unique_ptr<State> state) : state_(std::move(state)) {}
StepRunner::~StepRunner() = default;

Result<std::unique_ptr<StepRunner>> StepRunner::Create(const ModelSource& source,
                                                       const StepRunnerOptions& options) {
  auto state = std::make_unique<State>();
  state->options = options;
  state->config =
      options.attention == Attention::kDense ? WithoutIndexer(source.config()) : source.config();
  DSA_ASSIGN_OR_RETURN(state->device, MakeBackend(options.device, options.threads));
  state->backend = std::make_unique<TimingBackend>(*state->device);
  NoProgress progress;
  DSA_ASSIGN_OR_RETURN(state->weights, source.Load(*state->backend, progress));
  const std::int64_t sequence_blocks =
      (options.context_tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  state->blocks = static_cast<std::int32_t>(options.sequences_max * sequence_blocks);
  const ModelExecutorConfig executor = {
      .limits = {.tokens_max = options.chunk_tokens,
                 .sequences_max = options.sequences_max,
                 .table_rows_max = 2 * options.sequences_max,  // running and waiting
                 .context_max = options.context_tokens,
                 .logit_rows_max = options.sequences_max,
                 .adjustments_max = options.sequences_max * 64,
                 .masked_until = 0,
                 .score_bytes_max = kScoreBytesMax,
                 .logits_rows_host = 0},
      .blocks = state->blocks,
      .kv_format = state->config.default_kv_format(),
      .vocabulary_limit = static_cast<std::int32_t>(state->config.vocabulary)};
  const ExecutorMemory memory = PlanMemory(*state->backend, state->config, executor);
  if (memory.total() > state->backend->AvailableBytes()) {
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("batch: {} sequences of {} tokens need {} bytes, {} are available",
                             options.sequences_max, options.context_tokens, memory.total(),
                             state->backend->AvailableBytes())};
  }
  DSA_ASSIGN_OR_RETURN(
      state->model,
      ModelExecutor::Create(
          *state->backend, {.config = state->config, .weights = state->weights.weights}, executor));
  state->executor = std::make_unique<CopyingExecutor>(*state->model, *state->backend);
  DSA_RETURN_IF_ERROR(state->ComputeSource());
  return std::unique_ptr<StepRunner>(new StepRunner(std::move(state)));
}

Result<double> StepRunner::MeasurePrefill(std::int64_t end) {
  State& state = *state_;
  const std::int64_t chunk = state.options.chunk_tokens;
  DSA_CHECK(end >= chunk && end % chunk == 0, "MeasurePrefill: {} in chunks of {}", end, chunk);
  EngineLoop engine(state.MakeEngineConfig(chunk),
                    {.executor = *state.executor, .clock = state.clock, .decoders = nullptr});
  const auto sink = std::make_shared<ErrorSink>();
  DSA_RETURN_IF_ERROR(state.Submit(engine, sink, end, 1));
  state.executor->SetMode(CopyingExecutor::Mode::kCopy);
  while (engine.Load().tokens_computed < end - chunk) {
    DSA_ASSIGN_OR_RETURN(const double us, state.Step(engine, *sink));
    (void)us;
  }
  state.executor->SetMode(CopyingExecutor::Mode::kCompute);
  return state.Step(engine, *sink);
}

Result<std::vector<double>> StepRunner::MeasureDecode(
    std::int64_t batch, std::int64_t position, Keys keys,
    const std::function<bool(const std::vector<double>&)>& keep_going) {
  State& state = *state_;
  const bool copied = keys == Keys::kCopied;
  const std::int64_t prompts = batch * position;
  const std::int64_t step_tokens =
      copied ? std::clamp(prompts, state.options.chunk_tokens, kCopyTokensMax)
             : state.options.chunk_tokens;
  EngineLoop engine(state.MakeEngineConfig(step_tokens),
                    {.executor = *state.executor, .clock = state.clock, .decoders = nullptr});
  const auto sink = std::make_shared<ErrorSink>();
  const std::int64_t generated = state.options.context_tokens - position;
  for (std::int64_t i = 0; i < batch; ++i) {
    DSA_RETURN_IF_ERROR(state.Submit(engine, sink, position, generated));
  }
  state.executor->SetMode(copied ? CopyingExecutor::Mode::kCopy : CopyingExecutor::Mode::kCompute);
  while (engine.Load().running < batch || engine.Load().tokens_computed < prompts) {
    DSA_ASSIGN_OR_RETURN(const double us, state.Step(engine, *sink));
    (void)us;
  }
  state.executor->SetMode(CopyingExecutor::Mode::kCompute);
  DSA_ASSIGN_OR_RETURN(const double first_us, state.Step(engine, *sink));
  (void)first_us;
  std::vector<double> times_us;
  const std::int64_t steps_max = generated - 3;
  while (static_cast<std::int64_t>(times_us.size()) < steps_max && keep_going(times_us)) {
    DSA_ASSIGN_OR_RETURN(const double us, state.Step(engine, *sink));
    times_us.push_back(us);
  }
  return times_us;
}

TimingBackend& StepRunner::operators() {
  return *state_->backend;
}
bool StepRunner::operators_can_be_timed() const {
  return state_->options.device == "cpu";
}
std::string StepRunner::device_name() const {
  return state_->backend->Name();
}
KvFormat StepRunner::kv_format() const {
  return state_->config.default_kv_format();
}

}  // namespace dsa::bench
