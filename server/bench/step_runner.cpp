#include "server/bench/step_runner.h"

#include "common/prng.h"
#include "model/load_progress.h"
#include "server/bench/copying_executor.h"
#include "server/bench/units.h"
#include "server/devices.h"
#include "server/engine/batch_builder.h"
#include "server/engine/engine_loop.h"
#include "server/masked_border.h"

#include <algorithm>
#include <utility>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kScoreBytesMax = std::int64_t{64} << 20;
constexpr std::int64_t kSourceTokens = 512;  // computed, at least: what is copied from
constexpr std::int64_t kDeviceReserveBytes = std::int64_t{2} << 30;  // graphs, kernels, the driver
constexpr std::uint64_t kOwnTokens = std::uint64_t{1} << 40;         // prompts that no other begins
constexpr int kUntimedSteps = 2;                                     // the first one is recorded
constexpr int kSectionEvent = kEvents - 1;
constexpr GraphId kWholeStep{1 << 20};
constexpr GraphId kPartOfStep{(1 << 20) + 1};
constexpr double kSectionSecondsWanted = 0.02;
constexpr int kSectionRepeatsMax = 10;

// Notes errors and counts tokens; which they are does not matter.
class CountingSink final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& delta) override {
    if (delta.error) {
      error_ = delta.error;
    }
    tokens_ += static_cast<std::int64_t>(delta.tokens.size());
    ended_ = ended_ || delta.finish.has_value();
  }
  const std::optional<Error>& error() const { return error_; }
  std::int64_t tokens() const { return tokens_; }
  bool ended() const { return ended_; }

 private:
  std::optional<Error> error_;
  std::int64_t tokens_ = 0;
  bool ended_ = false;
};
using Sink = std::shared_ptr<CountingSink>;

ModelConfig WithoutIndexer(ModelConfig config) {
  config.architecture = Architecture::kDeepseekV3;
  config.index_heads = 0;
  config.index_topk = 0;
  return config;
}

ModelExecutorConfig ExecutorConfigOf(const BenchModel& model, const StepRunnerOptions& options) {
  const ModelConfig& config = model.ConfigOf(options.attention);
  return {.limits = {.tokens_max = options.chunk_tokens,
                     .sequences_max = options.sequences_max,
                     .table_rows_max = 2 * options.sequences_max,  // running and waiting
                     .context_max = options.context_tokens,
                     .logit_rows_max = options.sequences_max,
                     .given_rows_max = 0,
                     .row_adjustments = 64,
                     .masked_until = options.masked_until >= 0
                                         ? options.masked_until
                                         : std::min(kMaskedBorderMax, options.context_tokens),
                     .score_bytes_max = kScoreBytesMax,
                     .logits_rows_host = 0},
          .blocks = static_cast<std::int32_t>(options.sequences_max *
                                              BlockTableColumns(options.context_tokens)),
          .kv_format = config.default_kv_format(),
          .vocabulary_limit = static_cast<std::int32_t>(config.vocabulary),
          .runs_ahead = !model.on_cpu()};
}

}  // namespace

Result<BenchModel> LoadBenchModel(const ModelSource& source, const std::string& device,
                                  std::int64_t threads, bool dense_keeps_index) {
  BenchModel model;
  model.device = device;
  model.threads = threads;
  model.sparse = source.config();
  model.dense = dense_keeps_index ? source.config() : WithoutIndexer(source.config());
  DSA_ASSIGN_OR_RETURN(model.backend, MakeBackend(device, threads));
  NoProgress progress;
  DSA_ASSIGN_OR_RETURN(model.loaded, source.Load(*model.backend, progress));
  model.backend->Synchronize();
  return model;
}

struct StepRunner::State {
  State(const BenchModel& loaded, const StepRunnerOptions& sizes, const Clock& timing)
      : config(loaded.ConfigOf(sizes.attention)),
        on_cpu(loaded.on_cpu()),
        options(sizes),
        clock(timing) {}

  const ModelConfig& config;
  const bool on_cpu;
  const StepRunnerOptions options;
  const Clock& clock;
  std::int64_t masked_until = 0;
  // Destroyed in reverse.
  std::unique_ptr<Backend> device;
  std::unique_ptr<OperatorBackend> backend;
  std::unique_ptr<ModelExecutor> model;
  std::unique_ptr<CopyingExecutor> executor;
  std::unique_ptr<EngineLoop> engine;
  std::uint64_t own_prompts = 0;  // made so far

  void MeasureBorder(const StepLimits& limits);
  EngineConfig MakeEngineConfig(std::int32_t blocks) const;
  // `shared` tokens of the sequence's, which requests of it have in common, then own ones.
  Request MakeRequest(std::uint64_t sequence, std::int64_t shared, std::int64_t own,
                      std::int64_t generated);
  Result<Sink> Submit(Request request);
  // One step, all deltas delivered.  The executor's time of it in microseconds.
  Result<double> Step(const std::vector<Sink>& sinks);
  Status RunToEnd(const Sink& sink);
  // The first `tokens` of a sequence are in the prefix cache, whole blocks of them.
  Status Fill(std::uint64_t sequence, std::int64_t tokens);
  Status ComputeSource();
  void Abort(const std::vector<Sink>& sinks, std::uint64_t first_id);
  double MeasureGraph(GraphId graph) const;
};

void StepRunner::State::MeasureBorder(const StepLimits& limits) {
  masked_until = MeasureMaskedBorder(
                     *model, clock,
                     {.positions_max = limits.masked_until,
                      .rows_max = limits.tokens_max,
                      .context_max = limits.context_max,
                      .vocabulary = config.vocabulary,
                      .attention = options.attention == Attention::kSparse ? AttentionMode::kSparse
                                                                           : AttentionMode::kDense,
                      .index_topk = config.index_topk})
                     .until;
}

EngineConfig StepRunner::State::MakeEngineConfig(std::int32_t blocks) const {
  EngineConfig made;
  made.scheduler.step_tokens_max = options.chunk_tokens;
  made.scheduler.sequences_max = options.sequences_max;
  made.scheduler.waiting_max = options.sequences_max;
  made.scheduler.context_tokens_max = options.context_tokens;
  made.scheduler.attention =
      options.attention == Attention::kSparse ? AttentionMode::kSparse : AttentionMode::kDense;
  made.scheduler.index_topk = config.index_topk;
  made.scheduler.masked_mha_until = masked_until;
  made.blocks = blocks;
  made.tokens_per_block = kTokensPerBlock;
  made.vocabulary = config.vocabulary;
  for (const std::int32_t id : config.end_ids) {
    made.end_ids.push_back(TokenId{id});
  }
  made.cache_identity = "bench";
  if (!on_cpu) {  // as a server
    made.row_buckets = RowBuckets(options.sequences_max, kTokensPerBlock);
  }
  return made;
}

Request StepRunner::State::MakeRequest(std::uint64_t sequence, std::int64_t shared,
                                       std::int64_t own, std::int64_t generated) {
  Request request;
  const std::uint64_t own_key = kOwnTokens + own_prompts++;
  request.prompt.reserve(static_cast<std::size_t>(shared + own));
  for (std::int64_t i = 0; i < shared + own; ++i) {
    const std::uint64_t bits =
        CounterBits(i < shared ? sequence : own_key, static_cast<std::uint64_t>(i));
    request.prompt.push_back(
        TokenId{static_cast<std::int32_t>(bits % static_cast<std::uint64_t>(config.vocabulary))});
  }
  request.external_id = fmt::format("bench-{}", own_key);
  request.sampling.temperature = 0;
  request.stop.max_tokens = generated;
  request.stop.ignore_end = true;
  return request;
}

Result<Sink> StepRunner::State::Submit(Request request) {
  request.id = engine->NextRequestId();
  auto sink = std::make_shared<CountingSink>();
  DSA_RETURN_IF_ERROR(engine->Submit(std::move(request), sink));
  return sink;
}

Result<double> StepRunner::State::Step(const std::vector<Sink>& sinks) {
  const MonotonicUs start_us = clock.NowUs();
  engine->RunOnce();
  const MonotonicUs end_us = clock.NowUs();
  engine->PumpOnce();
  for (const Sink& sink : sinks) {
    if (sink->error()) {
      return *sink->error();
    }
  }
  return static_cast<double>(end_us - start_us);
}

Status StepRunner::State::RunToEnd(const Sink& sink) {
  while (!sink->ended()) {
    DSA_ASSIGN_OR_RETURN(const double us, Step({sink}));
    (void)us;
  }
  return {};
}

Status StepRunner::State::Fill(std::uint64_t sequence, std::int64_t tokens) {
  const std::int64_t whole = tokens / kTokensPerBlock * kTokensPerBlock;
  if (whole == 0) {
    return {};
  }
  executor->SetMode(CopyingExecutor::Mode::kCopy);
  DSA_ASSIGN_OR_RETURN(const Sink sink, Submit(MakeRequest(sequence, whole, 0, 1)));
  return RunToEnd(sink);
}

Status StepRunner::State::ComputeSource() {
  const std::int64_t tokens =
      std::min(std::max(kSourceTokens, options.chunk_tokens), options.context_tokens - 2);
  executor->SetMode(CopyingExecutor::Mode::kCompute);
  DSA_ASSIGN_OR_RETURN(const Sink sink, Submit(MakeRequest(0, 0, tokens, 1)));
  executor->BeginSource();
  DSA_RETURN_IF_ERROR(RunToEnd(sink));
  return executor->EndSource();
}

// Requests whose ids end in first_id and on.
void StepRunner::State::Abort(const std::vector<Sink>& sinks, std::uint64_t first_id) {
  for (std::size_t i = 0; i < sinks.size(); ++i) {
    engine->Abort(fmt::format("bench-{}", first_id + i));
  }
  executor->SetMode(CopyingExecutor::Mode::kCopy);  // nothing of theirs is to be computed
  const auto live = [](const Sink& sink) { return !sink->ended() && !sink->error(); };
  while (std::any_of(sinks.begin(), sinks.end(), live)) {
    engine->RunOnce();
    engine->PumpOnce();
  }
}

StepRunner::StepRunner(std::unique_ptr<State> state) : state_(std::move(state)) {}
StepRunner::~StepRunner() = default;

std::int64_t StepRunner::FittingSequences(const BenchModel& model, StepRunnerOptions options) {
  const std::int64_t available =
      model.backend->AvailableBytes() - (model.on_cpu() ? 0 : kDeviceReserveBytes);
  while (options.sequences_max > 0 && PlanMemory(*model.backend, model.ConfigOf(options.attention),
                                                 ExecutorConfigOf(model, options))
                                              .total() > available) {
    --options.sequences_max;
  }
  return options.sequences_max;
}

Result<std::unique_ptr<StepRunner>> StepRunner::Create(const BenchModel& model,
                                                       const StepRunnerOptions& options,
                                                       const Clock& clock) {
  if (FittingSequences(model, options) < options.sequences_max) {
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("batch: {} sequences of {} tokens do not fit into the {} bytes that "
                             "are available, {} do",
                             options.sequences_max, options.context_tokens,
                             model.backend->AvailableBytes(), FittingSequences(model, options))};
  }
  auto state = std::make_unique<State>(model, options, clock);
  // Of its own: a backend's scratch is one executor's.
  DSA_ASSIGN_OR_RETURN(state->device, MakeBackend(model.device, model.threads));
  state->backend = std::make_unique<OperatorBackend>(*state->device, !model.on_cpu(), clock);
  const ModelExecutorConfig config = ExecutorConfigOf(model, options);
  DSA_ASSIGN_OR_RETURN(
      state->model,
      ModelExecutor::Create(*state->backend,
                            {.config = state->config, .weights = model.loaded.weights}, config));
  if (options.masked_until >= 0) {
    state->masked_until = options.masked_until;
  } else {
    state->MeasureBorder(config.limits);
  }
  DSA_ASSIGN_OR_RETURN(
      state->executor,
      CopyingExecutor::Create(*state->model, *state->backend, config.blocks, options.chunk_tokens));
  state->engine = std::make_unique<EngineLoop>(
      state->MakeEngineConfig(config.blocks),
      EngineLoop::Dependencies{
          .executor = *state->executor, .clock = state->clock, .decoders = nullptr});
  DSA_RETURN_IF_ERROR(state->ComputeSource());
  return std::unique_ptr<StepRunner>(new StepRunner(std::move(state)));
}

Result<double> StepRunner::MeasurePrefill(std::int64_t end) {
  State& state = *state_;
  const std::int64_t chunk = state.options.chunk_tokens;
  DSA_CHECK(end >= chunk && end % chunk == 0 && chunk % kTokensPerBlock == 0,
            "MeasurePrefill: {} in chunks of {}", end, chunk);
  DSA_RETURN_IF_ERROR(state.Fill(0, end - chunk));
  state.executor->SetMode(CopyingExecutor::Mode::kCompute);
  DSA_ASSIGN_OR_RETURN(const Sink sink, state.Submit(state.MakeRequest(0, end - chunk, chunk, 1)));
  const std::int64_t before = state.engine->Load().tokens_computed;
  DSA_ASSIGN_OR_RETURN(const double us, state.Step({sink}));
  const std::int64_t computed = state.engine->Load().tokens_computed - before;
  DSA_RETURN_IF_ERROR(state.RunToEnd(sink));
  if (computed != chunk) {
    return Error{ErrorCode::kInternal,
                 fmt::format("a step computed {} tokens of a chunk of {}", computed, chunk)};
  }
  return us;
}

Result<std::vector<double>> StepRunner::MeasureDecode(
    std::int64_t batch, std::int64_t position, Keys keys,
    const std::function<bool(const std::vector<double>&)>& keep_going) {
  State& state = *state_;
  const bool copied = keys == Keys::kCopied;
  for (std::int64_t i = 0; copied && i < batch; ++i) {
    DSA_RETURN_IF_ERROR(state.Fill(static_cast<std::uint64_t>(i), position));
  }
  state.executor->SetMode(copied ? CopyingExecutor::Mode::kCopy : CopyingExecutor::Mode::kCompute);
  const std::int64_t generated = state.options.context_tokens - position;
  const std::uint64_t first_id = kOwnTokens + state.own_prompts;
  std::vector<Sink> sinks;
  for (std::int64_t i = 0; i < batch; ++i) {
    const std::int64_t shared = copied ? position : 0;
    DSA_ASSIGN_OR_RETURN(Sink sink,
                         state.Submit(state.MakeRequest(static_cast<std::uint64_t>(i), shared,
                                                        position - shared, generated)));
    sinks.push_back(std::move(sink));
  }
  const auto waits = [](const Sink& sink) { return sink->tokens() == 0; };
  while (std::any_of(sinks.begin(), sinks.end(), waits)) {
    DSA_ASSIGN_OR_RETURN(const double us, state.Step(sinks));
    (void)us;
  }
  state.executor->SetMode(CopyingExecutor::Mode::kCompute);
  std::vector<double> times_us;
  std::int64_t most = 0;  // tokens of a sequence so far
  for (const Sink& sink : sinks) {
    most = std::max(most, sink->tokens());
  }
  const std::int64_t steps_max = generated - most - kUntimedSteps - 2;
  for (int i = 0; i < kUntimedSteps && i < steps_max + kUntimedSteps; ++i) {
    DSA_ASSIGN_OR_RETURN(const double us, state.Step(sinks));
    (void)us;
  }
  while (static_cast<std::int64_t>(times_us.size()) < steps_max && keep_going(times_us)) {
    DSA_ASSIGN_OR_RETURN(const double us, state.Step(sinks));
    times_us.push_back(us);
  }
  state.Abort(sinks, first_id);
  return times_us;
}

// Microseconds of one of so many replays that the host's clock counts little.
double StepRunner::State::MeasureGraph(GraphId graph) const {
  const auto run = [&](int times) {
    const MonotonicUs start = clock.NowUs();
    for (int i = 0; i < times; ++i) {
      backend->Replay(graph);
    }
    backend->Mark(kSectionEvent);
    backend->WaitFor(kSectionEvent);
    return static_cast<double>(clock.NowUs() - start) / kUsPerSecond;
  };
  const double once = run(1);
  const int repeats = std::min(static_cast<int>(kSectionSecondsWanted / once), kSectionRepeatsMax);
  return kUsPerSecond * (repeats < 1 ? once : run(repeats) / repeats);
}

StepRunner::Sections StepRunner::MeasureSections() {
  State& state = *state_;
  OperatorBackend& backend = *state.backend;
  Sections sections{};
  state.model->RecordLast(kWholeStep);
  sections.step_us = state.MeasureGraph(kWholeStep);
  for (std::size_t i = 0; i < kOperatorNames.size(); ++i) {
    backend.Only(static_cast<Operator>(i));
    state.model->RecordLast(kPartOfStep);
    const bool runs = backend.calls() > 0;
    backend.Only(std::nullopt);
    if (runs) {
      sections.times_us[i] = state.MeasureGraph(kPartOfStep);
    }
  }
  return sections;
}

std::int64_t StepRunner::masked_until() const {
  return state_->masked_until;
}
OperatorBackend& StepRunner::operators() {
  return *state_->backend;
}
std::string StepRunner::device_name() const {
  return state_->backend->Name();
}
KvFormat StepRunner::kv_format() const {
  return state_->config.default_kv_format();
}

}  // namespace dsa::bench
