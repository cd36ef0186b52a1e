#include "server/bench/position_bench.h"

#include "model/model_slice.h"
#include "server/bench/output_folder.h"
#include "server/bench/position_sizes.h"
#include "server/bench/progress_line.h"
#include "server/bench/statistics.h"
#include "server/bench/units.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <functional>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kComparePosition = 256;
constexpr std::int64_t kPrefillSequences = 2;  // room for the chunks of repeats beside the context
constexpr double kMedianErrorFactor = 1.2533;  // of a median, in deviations of a mean: sqrt(pi / 2)
constexpr double kCentralSpread = 2.5631;      // deviations from the 10th to the 90th percentile
constexpr double kConfidence = 1.96;
constexpr double kWantedInterval = 0.01;
constexpr double kErrorMin = 0.002;  // clocks and neighbours: no median is better known

constexpr std::int64_t kCheapFactor = 5;

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

class Sweep final {
 public:
  Sweep(const PositionOptions& options, const PositionSizes& sizes, const Clock& clock,
        const std::atomic<bool>& interrupted, PositionResult& result)
      : options_(options),
        sizes_(sizes),
        clock_(clock),
        interrupted_(interrupted),
        result_(result),
        points_(2 * static_cast<std::int64_t>(sizes.positions.size()) *
                (sizes.batch_max > options.batch ? 3 : 2)) {}

  void MeasureArm(const BenchModel& model, Attention attention);

 private:
  double SecondsSince(MonotonicUs start) const {
    return static_cast<double>(clock_.NowUs() - start) / kUsPerSecond;
  }
  using Positions = std::vector<std::int64_t>;
  // The positions that fit; the others are skipped.
  Positions FittingPositions(const BenchModel& model, bool decode, Attention attention);
  Status PrefillArm(const BenchModel& model, Attention attention, const Positions& positions);
  Status DecodeArm(const BenchModel& model, Attention attention, const Positions& positions);
  Status Prefill(StepRunner& runner, Attention attention, std::int64_t position);
  Status Decode(StepRunner& runner, Attention attention, std::int64_t position, std::int64_t batch);
  Status TimeOperators(StepRunner& runner, PositionRow& row);
  Status Compare(StepRunner& runner, std::int64_t longest);
  std::function<bool(const std::vector<double>&)> KeepGoing() const;
  void Keep(PositionRow row, std::vector<double> times);
  void Skip(bool decode, Attention attention, std::int64_t position, const std::string& reason);
  void Show(const std::string& what);
  std::int64_t DecodeStart(std::int64_t position, std::int64_t batch) const;

  const PositionOptions& options_;
  const PositionSizes& sizes_;
  const Clock& clock_;
  const std::atomic<bool>& interrupted_;
  PositionResult& result_;
  const std::int64_t points_;
  std::int64_t done_ = 0;
  std::int64_t batch_max_ = 0;  // the largest that fits, found by the first arm; 0: not yet
  ProgressLine progress_;
  const MonotonicUs start_ = clock_.NowUs();
};

void Sweep::Show(const std::string& what) {
  const double elapsed = SecondsSince(start_);
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
  return [this, start = MonotonicUs{0}](const std::vector<double>& times) mutable {
    if (times.empty()) {
      start = clock_.NowUs();
    }
    return !interrupted_.load(std::memory_order_relaxed) &&
           !IsEnough(times, sizes_.repeats, SecondsSince(start));
  };
}

// The measured steps lie about the position, begin with it where the context has just begun, and
// end before the context does, however many steps pass until all sequences decode.
std::int64_t Sweep::DecodeStart(std::int64_t position, std::int64_t batch) const {
  constexpr std::int64_t kOtherSteps = 4;  // untimed ones, and the last token
  const StepRunnerOptions runner =
      sizes_.RunnerOptions(true, Attention::kSparse, batch_max_, position);
  const std::int64_t prompt_rows = runner.chunk_tokens - batch;  // of each step, at least
  const std::int64_t until_all_decode = batch * kTokensPerBlock / prompt_rows + 2;
  const std::int64_t last =
      sizes_.context_max - sizes_.repeats.maximum - until_all_decode - kOtherSteps;
  return std::max<std::int64_t>(1, std::min(position - sizes_.repeats.maximum / 2, last));
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
  const std::int64_t start = DecodeStart(position, batch);
  DSA_ASSIGN_OR_RETURN(std::vector<double> times,
                       runner.MeasureDecode(batch, start, Keys::kCopied, KeepGoing()));
  if (times.empty()) {
    if (interrupted_.load(std::memory_order_relaxed)) {
      return {};
    }
    return Error{ErrorCode::kInternal, "the context ended before all sequences decoded"};
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
      runner.MeasureDecode(row.batch, DecodeStart(row.position, row.batch), Keys::kCopied,
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

// A real prefill of every sequence against copied keys; no further than to `longest`.
Status Sweep::Compare(StepRunner& runner, std::int64_t longest) {
  const std::int64_t position = std::min(kComparePosition, longest);
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

Sweep::Positions Sweep::FittingPositions(const BenchModel& model, bool decode,
                                         Attention attention) {
  const std::int64_t sequences = decode ? std::max(options_.batch, batch_max_) : kPrefillSequences;
  Positions fitting = PositionsThatFit(model, sizes_, decode, attention, sequences);
  const std::string what_fits =
      fitting.empty() ? "no position does" : fmt::format("positions up to {} do", fitting.back());
  for (std::size_t i = fitting.size(); i < sizes_.positions.size(); ++i) {
    const std::int64_t position = sizes_.positions[i];
    Skip(decode, attention, position,
         fmt::format(
             "{} sequences of {} tokens do not fit into the {} bytes that are available, {}",
             sequences, sizes_.RunnerOptions(decode, attention, sequences, position).context_tokens,
             model.backend->AvailableBytes(), what_fits));
  }
  return fitting;
}

Status Sweep::PrefillArm(const BenchModel& model, Attention attention, const Positions& positions) {
  DSA_ASSIGN_OR_RETURN(
      const std::unique_ptr<StepRunner> runner,
      StepRunner::Create(
          model, sizes_.RunnerOptions(false, attention, kPrefillSequences, positions.back()),
          clock_));
  result_.device_name = runner->device_name();
  if (attention == Attention::kSparse) {
    result_.masked_until = runner->masked_until();
  } else {
    result_.dense_is_masked = sizes_.dense_is_masked();
  }
  for (const std::int64_t position : positions) {
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

Status Sweep::DecodeArm(const BenchModel& model, Attention attention, const Positions& positions) {
  if (batch_max_ == 0) {
    batch_max_ = std::max(
        StepRunner::FittingSequences(
            model, sizes_.RunnerOptions(true, attention, sizes_.batch_max, positions.back())),
        options_.batch);
  }
  DSA_ASSIGN_OR_RETURN(
      const std::unique_ptr<StepRunner> runner,
      StepRunner::Create(model, sizes_.RunnerOptions(true, attention, batch_max_, positions.back()),
                         clock_));
  std::vector<std::int64_t> batches = {options_.batch};
  if (batch_max_ > options_.batch) {
    batches.push_back(batch_max_);
  }
  for (const std::int64_t position : positions) {
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
  return attention == Attention::kSparse ? Compare(*runner, positions.back()) : Status();
}

void Sweep::MeasureArm(const BenchModel& model, Attention attention) {
  for (const bool decode : {false, true}) {
    const Positions positions = FittingPositions(model, decode, attention);
    if (positions.empty()) {
      continue;
    }
    const Status status =
        decode ? DecodeArm(model, attention, positions) : PrefillArm(model, attention, positions);
    for (const std::int64_t position : positions) {
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

Result<PositionResult> MeasurePositions(const PositionOptions& options, const Clock& clock,
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
  DSA_ASSIGN_OR_RETURN(const PositionSizes sizes, ChoosePositionSizes(options, config));
  DSA_ASSIGN_OR_RETURN(
      const BenchModel model,
      LoadBenchModel(source, options.device, options.threads, options.dense_keeps_index));
  result.config = config;
  result.model_name = ModelName(options);
  result.kv_format = config.default_kv_format();
  Sweep sweep(options, sizes, clock, interrupted, result);
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
