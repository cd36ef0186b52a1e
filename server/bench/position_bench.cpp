#include "server/bench/position_bench.h"

#include "model/model_slice.h"
#include "server/bench/output_folder.h"
#include "server/bench/progress_line.h"
#include "server/bench/statistics.h"
#include "server/bench/units.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <set>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kPositionMaxDefault = 131072;
constexpr std::int64_t kComparePosition = 256;
constexpr double kMedianErrorFactor = 1.2533;  // of a median, in deviations of a mean: sqrt(pi / 2)
constexpr double kCentralSpread = 2.5631;      // deviations from the 10th to the 90th percentile
constexpr double kConfidence = 1.96;
constexpr double kWantedInterval = 0.01;
constexpr double kErrorMin = 0.002;  // clocks and neighbours: no median is better known

constexpr std::int64_t kCheapFactor = 5;

// How long a point is repeated.
struct RepeatLimits {
  std::int64_t minimum;  // kCheapFactor times as many where that takes no time to speak of
  std::int64_t maximum;
  double seconds;
};

struct Sizes {
  std::vector<std::int64_t> positions;
  std::int64_t chunk;
  std::int64_t batch_max;
  std::int64_t prefill_context;
  std::int64_t decode_context;
  std::int64_t masked_until;  // -1: measured
  RepeatLimits repeats;
};

// The median's deviation, from the spread of the samples.
double MedianError(const std::vector<double>& sorted) {
  const double spread = (PercentileOf(sorted, 90) - PercentileOf(sorted, 10)) / kCentralSpread;
  const double error = kMedianErrorFactor * spread / std::sqrt(static_cast<double>(sorted.size()));
  return std::max(error, kErrorMin * PercentileOf(sorted, 50));
}

bool IsEnough(std::vector<double> times, const RepeatLimits& limits, double seconds) {
  const auto count = static_cast<std::int64_t>(times.size());
  if (count < limits.minimum) {
    return false;
  }
  constexpr double kCheapSeconds = 0.1;
  if (count < kCheapFactor * limits.minimum && seconds < kCheapSeconds) {
    return false;
  }
  if (count >= limits.maximum || seconds > limits.seconds) {
    return true;
  }
  std::sort(times.begin(), times.end());
  return kConfidence * MedianError(times) < kWantedInterval * PercentileOf(times, 50);
}

Result<Sizes> ChooseSizes(const PositionOptions& options, const ModelConfig& model) {
  const bool cpu = options.device == "cpu";
  Sizes sizes;
  sizes.chunk = options.chunk_tokens > 0 ? options.chunk_tokens : (cpu ? 64 : 2048);
  sizes.batch_max = options.batch_max > 0 ? options.batch_max : (cpu ? 4 : 256);
  sizes.repeats =
      options.quick ? RepeatLimits{2, 16, cpu ? 0.25 : 0.5} : RepeatLimits{5, 200, cpu ? 5.0 : 3.0};
  if (options.batch > sizes.batch_max || sizes.batch_max > sizes.chunk) {
    return InvalidArgument(
        fmt::format("batch: {} and max-batch: {} must ascend to the {} rows of a step (--chunk)",
                    options.batch, sizes.batch_max, sizes.chunk));
  }
  if (sizes.chunk % kTokensPerBlock != 0) {
    return InvalidArgument(fmt::format("chunk: {} is no multiple of the {} tokens of a block",
                                       sizes.chunk, kTokensPerBlock));
  }
  if (model.context_max < sizes.chunk + sizes.repeats.maximum) {
    return InvalidArgument(
        fmt::format("model: its context of {} tokens is too short to measure", model.context_max));
  }
  for (const std::int64_t position : options.positions) {
    if (position < 0 || position > model.context_max) {
      return InvalidArgument(fmt::format("positions: {} is not in [0, {}], the model's context",
                                         position, model.context_max));
    }
  }
  std::set<std::int64_t> positions(options.positions.begin(), options.positions.end());
  if (options.position_max > model.context_max) {
    return InvalidArgument(fmt::format("max-position: {} is not in [1, {}], the model's context",
                                       options.position_max, model.context_max));
  }
  const std::int64_t limit = options.position_max > 0
                                 ? options.position_max
                                 : std::min(model.context_max, kPositionMaxDefault);
  if (positions.empty()) {
    const std::int64_t top = model.index_topk;
    positions = {0, top / 2, top, 2 * top, limit};
    if (!options.quick) {
      positions.insert(3 * top);
    }
    for (std::int64_t position = 1024; position < limit; position *= 2) {
      positions.insert(position);
      if (!options.quick && position >= 8192) {
        positions.insert(position + position / 2);
      }
    }
    std::erase_if(positions, [limit](std::int64_t position) { return position > limit; });
  }
  sizes.positions.assign(positions.begin(), positions.end());
  const std::int64_t longest = std::max(sizes.positions.back(), sizes.chunk);
  sizes.prefill_context = std::min(model.context_max, longest / sizes.chunk * sizes.chunk + 4);
  sizes.decode_context =
      std::min(model.context_max,
               sizes.positions.back() + sizes.repeats.maximum + std::int64_t{2} * kTokensPerBlock);
  sizes.masked_until = options.masked_until < 0 && cpu ? 0 : options.masked_until;
  return sizes;
}

class Sweep final {
 public:
  Sweep(const PositionOptions& options, const Sizes& sizes, const std::atomic<bool>& interrupted,
        PositionResult& result)
      : options_(options),
        sizes_(sizes),
        interrupted_(interrupted),
        result_(result),
        points_(2 * static_cast<std::int64_t>(sizes.positions.size()) *
                (sizes.batch_max > options.batch ? 3 : 2)) {}

  void MeasureArm(const BenchModel& model, Attention attention);

 private:
  using Clock = std::chrono::steady_clock;
  static double Since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }
  Status PrefillArm(const BenchModel& model, Attention attention);
  Status DecodeArm(const BenchModel& model, Attention attention);
  Status Prefill(StepRunner& runner, Attention attention, std::int64_t position);
  Status Decode(StepRunner& runner, Attention attention, std::int64_t position, std::int64_t batch);
  Status TimeOperators(StepRunner& runner, PositionRow& row);
  Status Compare(StepRunner& runner);
  std::function<bool(const std::vector<double>&)> KeepGoing() const;
  void Keep(PositionRow row, std::vector<double> times);
  void Skip(bool decode, Attention attention, std::int64_t position, const std::string& reason);
  void Show(const std::string& what);
  std::int64_t DecodeStart(std::int64_t position) const;

  const PositionOptions& options_;
  const Sizes& sizes_;
  const std::atomic<bool>& interrupted_;
  PositionResult& result_;
  const std::int64_t points_;
  std::int64_t done_ = 0;
  std::int64_t batch_max_ = 0;  // the largest that fits, found by the first arm; 0: not yet
  ProgressLine progress_;
  const Clock::time_point start_ = Clock::now();
};

void Sweep::Show(const std::string& what) {
  const double elapsed = Since(start_);
  const double left =
      done_ > 0 ? elapsed / static_cast<double>(done_) * static_cast<double>(points_ - done_) : 0;
  progress_.Show(fmt::format("{} of {} points, {}{}", done_, points_, what,
                             done_ > 0 ? fmt::format(", about {:.0f} s left", left) : ""));
}

void Sweep::Skip(bool decode, Attention attention, std::int64_t position,
                 const std::string& reason) {
  result_.complete = false;
  result_.skipped.push_back(
      fmt::format("{}, {}, {}: {}", PhaseName(decode), NameOf(attention), position, reason));
}

void Sweep::Keep(PositionRow row, std::vector<double> times) {
  std::sort(times.begin(), times.end());
  row.steps = static_cast<std::int64_t>(times.size());
  row.step_us = PercentileOf(times, 50);
  row.step_us_p10 = PercentileOf(times, 10);
  row.step_us_p90 = PercentileOf(times, 90);
  row.error_us = MedianError(times);
  result_.rows.push_back(row);
  ++done_;
}

// Its clock starts with the first call: filling caches before is not counted.
std::function<bool(const std::vector<double>&)> Sweep::KeepGoing() const {
  return [this, start = Clock::time_point()](const std::vector<double>& times) mutable {
    if (times.empty()) {
      start = Clock::now();
    }
    return !interrupted_.load(std::memory_order_relaxed) &&
           !IsEnough(times, sizes_.repeats, Since(start));
  };
}

// The measured steps end at the position, or begin with it where the context has just begun.
std::int64_t Sweep::DecodeStart(std::int64_t position) const {
  return std::max<std::int64_t>(1, position - sizes_.repeats.maximum / 2);
}

Status Sweep::Prefill(StepRunner& runner, Attention attention, std::int64_t position) {
  const std::int64_t chunk = sizes_.chunk;
  // A prompt of the whole context could not be answered.
  const std::int64_t last = std::min(position, result_.config.context_max - 1);
  const std::int64_t end = std::max(chunk, last / chunk * chunk);
  const bool measured =
      std::any_of(result_.rows.begin(), result_.rows.end(), [&](const PositionRow& row) {
        return !row.decode && row.attention == attention && row.end == end;
      });
  if (measured) {  // a shorter position in the same chunk
    ++done_;
    return {};
  }
  std::vector<double> times;
  double seconds = 0;  // of measured steps: filling the cache before them is not counted
  while (!IsEnough(times, sizes_.repeats, seconds) &&
         !interrupted_.load(std::memory_order_relaxed)) {
    DSA_ASSIGN_OR_RETURN(const double us, runner.MeasurePrefill(end));
    times.push_back(us);
    seconds += us / kUsPerSecond;
  }
  if (times.empty()) {
    return {};
  }
  Keep({.decode = false,
        .attention = attention,
        .position = position,
        .start = end - chunk,
        .end = end,
        .batch = 1,
        .chunk = chunk},
       std::move(times));
  return runner.operators().fused() ? TimeOperators(runner, result_.rows.back()) : Status();
}

Status Sweep::Decode(StepRunner& runner, Attention attention, std::int64_t position,
                     std::int64_t batch) {
  const std::int64_t start = DecodeStart(position);
  DSA_ASSIGN_OR_RETURN(std::vector<double> times,
                       runner.MeasureDecode(batch, start, Keys::kCopied, KeepGoing()));
  if (times.empty()) {
    return {};
  }
  const auto steps = static_cast<std::int64_t>(times.size());
  Keep({.decode = true,
        .attention = attention,
        .position = position,
        .start = start + 1,
        .end = start + 1 + steps,
        .batch = batch,
        .chunk = batch},
       std::move(times));
  const bool cheap = runner.operators().fused() || batch == options_.batch;
  return cheap ? TimeOperators(runner, result_.rows.back()) : Status();
}

// Of the point that was measured last.
Status Sweep::TimeOperators(StepRunner& runner, PositionRow& row) {
  PointOperators operators;
  if (runner.operators().fused()) {
    const StepRunner::Sections sections = runner.MeasureSections();
    operators.step_us = sections.step_us;
    operators.times_us = sections.times_us;
    double sum_us = 0;
    for (const double time : sections.times_us) {
      sum_us += time;
    }
    operators.to_plain = sum_us / row.step_us;
    row.operators = operators;
    return {};
  }
  const auto once = KeepGoing();
  DSA_ASSIGN_OR_RETURN(
      std::vector<double> steps,
      runner.MeasureDecode(row.batch, DecodeStart(row.position), Keys::kCopied,
                           [&](const std::vector<double>& times) {
                             if (times.empty()) {
                               runner.operators().Start();  // the steps before are behind
                             }
                             return once(times);
                           }));
  runner.operators().Stop();
  if (steps.empty()) {
    return {};
  }
  operators.times_us = runner.operators().times_us();
  for (double& time : operators.times_us) {
    time /= static_cast<double>(steps.size());
  }
  operators.step_us = Describe(steps).average;  // as the operators' times are means
  std::sort(steps.begin(), steps.end());
  operators.to_plain = PercentileOf(steps, 50) / row.step_us;
  row.operators = operators;
  return {};
}

// A real prefill of every sequence against copied keys.
Status Sweep::Compare(StepRunner& runner) {
  const std::int64_t position = std::min(kComparePosition, sizes_.positions.back());
  if (position < 1) {
    return {};
  }
  std::array<double, 2> medians{};
  for (const Keys keys : {Keys::kComputed, Keys::kCopied}) {
    DSA_ASSIGN_OR_RETURN(std::vector<double> times,
                         runner.MeasureDecode(options_.batch, position, keys, KeepGoing()));
    if (times.empty()) {
      return {};
    }
    std::sort(times.begin(), times.end());
    medians[keys == Keys::kComputed ? 0 : 1] = PercentileOf(times, 50);
  }
  result_.computed_to_copied = medians[0] / medians[1];
  return {};
}

Status Sweep::PrefillArm(const BenchModel& model, Attention attention) {
  constexpr std::int64_t kSequences = 2;  // room for the chunks of repeats beside the context
  const bool all = attention == Attention::kDense && sizes_.masked_until != 0;
  DSA_ASSIGN_OR_RETURN(const std::unique_ptr<StepRunner> runner,
                       StepRunner::Create(model, {.attention = attention,
                                                  .sequences_max = kSequences,
                                                  .context_tokens = sizes_.prefill_context,
                                                  .chunk_tokens = sizes_.chunk,
                                                  .masked_until = all ? sizes_.prefill_context
                                                                      : sizes_.masked_until}));
  result_.device_name = runner->device_name();
  if (attention == Attention::kSparse) {
    result_.masked_until = runner->masked_until();
  } else {
    result_.dense_is_masked = all;
  }
  for (const std::int64_t position : sizes_.positions) {
    if (interrupted_.load(std::memory_order_relaxed)) {
      Skip(false, attention, position, "interrupted");
      continue;
    }
    Show(fmt::format("prefill, {}, position {}", NameOf(attention), position));
    const Status prefill = Prefill(*runner, attention, position);
    if (!prefill.ok()) {
      Skip(false, attention, position, prefill.error().message);
    }
  }
  return {};
}

Status Sweep::DecodeArm(const BenchModel& model, Attention attention) {
  StepRunnerOptions wanted = {.attention = attention,
                              .sequences_max = sizes_.batch_max,
                              .context_tokens = sizes_.decode_context,
                              .chunk_tokens = sizes_.chunk,
                              .masked_until = 0};
  if (batch_max_ == 0) {
    batch_max_ = std::max(StepRunner::FittingSequences(model, wanted), options_.batch);
  }
  wanted.sequences_max = batch_max_;
  DSA_ASSIGN_OR_RETURN(const std::unique_ptr<StepRunner> runner, StepRunner::Create(model, wanted));
  std::vector<std::int64_t> batches = {options_.batch};
  if (batch_max_ > options_.batch) {
    batches.push_back(batch_max_);
  }
  for (const std::int64_t position : sizes_.positions) {
    for (const std::int64_t batch : batches) {
      if (interrupted_.load(std::memory_order_relaxed)) {
        Skip(true, attention, position, "interrupted");
        continue;
      }
      Show(fmt::format("decode, {}, position {}, batch {}", NameOf(attention), position, batch));
      const Status decode = Decode(*runner, attention, position, batch);
      if (!decode.ok()) {
        Skip(true, attention, position, decode.error().message);
      }
    }
  }
  return attention == Attention::kSparse ? Compare(*runner) : Status();
}

void Sweep::MeasureArm(const BenchModel& model, Attention attention) {
  for (const bool decode : {false, true}) {
    const Status status = decode ? DecodeArm(model, attention) : PrefillArm(model, attention);
    for (const std::int64_t position : sizes_.positions) {
      const auto is_of_it = [&](const PositionRow& row) {
        return row.decode == decode && row.attention == attention && row.position == position;
      };
      if (!status.ok() && std::none_of(result_.rows.begin(), result_.rows.end(), is_of_it)) {
        Skip(decode, attention, position, status.error().message);
      }
    }
  }
}

std::string ModelName(const PositionOptions& options) {
  const auto path = std::filesystem::path(options.model).lexically_normal();
  const std::string name = path.has_filename() ? path.filename() : path.parent_path().filename();
  std::string slice = options.slice;
  std::replace(slice.begin(), slice.end(), ',', ' ');  // it stands in a column
  return slice == "all" ? name : fmt::format("{} ({})", name, slice);
}

}  // namespace

Result<PositionResult> MeasurePositions(const PositionOptions& options,
                                        const std::atomic<bool>& interrupted) {
  constexpr std::array<std::string_view, 2> kFiles = {"position.csv", "position.json"};
  DSA_RETURN_IF_ERROR(PrepareFolder(options.output, kFiles));
  DSA_ASSIGN_OR_RETURN(
      const ModelSource source,
      ModelSource::Open(options.model, options.load, GenerationFile::kRead, options.slice));
  const ModelConfig& config = source.config();
  if (!config.has_indexer()) {
    return InvalidArgument("model: it has no indexer, so there is nothing to compare");
  }
  DSA_ASSIGN_OR_RETURN(ModelSlice uncut, ParseModelSlice(options.slice));
  PositionResult result;
  result.expert_ranks = uncut.expert_ranks;
  if (uncut.layers > 0) {
    uncut.layers = 0;
    DSA_ASSIGN_OR_RETURN(const ModelConfig whole, LoadModelConfig(options.model));
    DSA_ASSIGN_OR_RETURN(result.whole, SliceOf(whole, uncut));
  } else {
    result.whole = config;
  }
  if (config.layers < result.whole.layers && config.layers == config.dense_layers) {
    return InvalidArgument(fmt::format(
        "slice: none of the first {} layers has experts; to be scaled to {} layers it must be "
        "layers={} at least",
        config.layers, result.whole.layers, config.layers + 1));
  }
  DSA_ASSIGN_OR_RETURN(const Sizes sizes, ChooseSizes(options, config));
  DSA_ASSIGN_OR_RETURN(
      const BenchModel model,
      LoadBenchModel(source, options.device, options.threads, options.dense_keeps_index));
  result.config = config;
  result.model_name = ModelName(options);
  result.kv_format = config.default_kv_format();
  Sweep sweep(options, sizes, interrupted, result);
  for (const Attention attention : {Attention::kSparse, Attention::kDense}) {
    sweep.MeasureArm(model, attention);
  }
  if (result.rows.empty()) {
    return Error{ErrorCode::kFailedPrecondition,
                 result.skipped.empty() ? "no point" : result.skipped.front()};
  }
  FitCurves(result);
  return result;
}

}  // namespace dsa::bench
