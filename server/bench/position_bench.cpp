#include "server/bench/position_bench.h"

#include "server/bench/output_folder.h"
#include "server/bench/progress_line.h"
#include "server/bench/statistics.h"
#include "server/bench/units.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
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

// How long a point is repeated.
struct RepeatLimits {
  std::int64_t minimum;
  std::int64_t maximum;
  double seconds;
};

struct Sizes {
  std::vector<std::int64_t> positions;
  std::int64_t chunk;
  std::int64_t batch_max;
  std::int64_t context;
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
        fmt::format("batch: {} and batch-max: {} must ascend to the {} rows of a step (--chunk)",
                    options.batch, sizes.batch_max, sizes.chunk));
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
  const std::int64_t chunks = (longest + sizes.chunk - 1) / sizes.chunk;
  sizes.context = std::min(model.context_max, chunks * sizes.chunk + sizes.repeats.maximum + 4);
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

  Status MeasureArm(const ModelSource& source, Attention attention);

 private:
  using Clock = std::chrono::steady_clock;
  static double Since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }
  Status Prefill(StepRunner& runner, Attention attention, std::int64_t position);
  Status Decode(StepRunner& runner, Attention attention, std::int64_t position, std::int64_t batch);
  Status Operators(StepRunner& runner, Attention attention, std::int64_t position, double plain_us);
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

std::function<bool(const std::vector<double>&)> Sweep::KeepGoing() const {
  const auto start = Clock::now();
  return [this, start](const std::vector<double>& times) {
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
  const std::int64_t end = std::max(chunk, position / chunk * chunk);
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
  return {};
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
  if (batch == options_.batch && runner.operators_can_be_timed()) {
    return Operators(runner, attention, position, result_.rows.back().step_us);
  }
  return {};
}

Status Sweep::Operators(StepRunner& runner, Attention attention, std::int64_t position,
                        double plain_us) {
  OperatorRow row = {.decode = true, .attention = attention, .position = position};
  std::vector<double> steps;
  const auto once = KeepGoing();
  DSA_ASSIGN_OR_RETURN(
      steps, runner.MeasureDecode(options_.batch, DecodeStart(position), Keys::kCopied,
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
  row.times_us = runner.operators().times_us();
  for (double& time : row.times_us) {
    time /= static_cast<double>(steps.size());
  }
  row.step_us = Describe(steps).average;  // as the operators' times are means
  std::sort(steps.begin(), steps.end());
  row.instrumented_ratio = PercentileOf(steps, 50) / plain_us;
  result_.operators.push_back(row);
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

Status Sweep::MeasureArm(const ModelSource& source, Attention attention) {
  DSA_ASSIGN_OR_RETURN(const std::unique_ptr<StepRunner> runner,
                       StepRunner::Create(source, {.device = options_.device,
                                                   .threads = options_.threads,
                                                   .attention = attention,
                                                   .sequences_max = sizes_.batch_max,
                                                   .context_tokens = sizes_.context,
                                                   .chunk_tokens = sizes_.chunk}));
  result_.device_name = runner->device_name();
  result_.kv_format = runner->kv_format();
  std::vector<std::int64_t> batches = {options_.batch};
  if (sizes_.batch_max > options_.batch) {
    batches.push_back(sizes_.batch_max);
  }
  for (const std::int64_t position : sizes_.positions) {
    if (interrupted_.load(std::memory_order_relaxed)) {
      Skip(true, attention, position, "interrupted");
      continue;
    }
    Show(fmt::format("{}, position {}", NameOf(attention), position));
    const Status prefill = Prefill(*runner, attention, position);
    if (!prefill.ok()) {
      Skip(false, attention, position, prefill.error().message);
    }
    for (const std::int64_t batch : batches) {
      const Status decode = Decode(*runner, attention, position, batch);
      if (!decode.ok()) {
        Skip(true, attention, position, decode.error().message);
      }
    }
  }
  return attention == Attention::kSparse ? Compare(*runner) : Status();
}

void FitCurves(PositionResult& result) {
  for (const bool decode : {false, true}) {
    for (const std::int64_t batch : BatchesOf(result, decode)) {
      for (const Attention attention : {Attention::kSparse, Attention::kDense}) {
        const auto curve = CurveOf(result, decode, attention, batch);
        const auto fit = attention == Attention::kSparse ? FitKnee(curve) : FitLine(curve);
        if (fit) {
          result.fits.push_back(
              {.decode = decode, .attention = attention, .batch = batch, .fit = *fit});
        }
      }
    }
  }
}

}  // namespace

std::vector<CostPoint> CurveOf(const PositionResult& result, bool decode, Attention attention,
                               std::int64_t batch) {
  std::vector<CostPoint> curve;
  for (const PositionRow& row : result.rows) {
    if (row.decode == decode && row.attention == attention && row.batch == batch) {
      curve.push_back({.position = row.middle(),
                       .cost_us = row.us_per_token(),
                       .error_us = row.error_us / static_cast<double>(row.chunk)});
    }
  }
  std::sort(curve.begin(), curve.end(),
            [](const auto& a, const auto& b) { return a.position < b.position; });
  return curve;
}

std::vector<std::int64_t> BatchesOf(const PositionResult& result, bool decode) {
  std::set<std::int64_t> batches;
  for (const PositionRow& row : result.rows) {
    if (row.decode == decode) {
      batches.insert(row.batch);
    }
  }
  return {batches.begin(), batches.end()};
}

std::vector<std::string> PositionSentences(const PositionResult& result) {
  std::vector<std::string> sentences;
  for (const bool decode : {false, true}) {
    for (const std::int64_t batch : BatchesOf(result, decode)) {
      const auto sparse = CurveOf(result, decode, Attention::kSparse, batch);
      const auto dense = CurveOf(result, decode, Attention::kDense, batch);
      if (sparse.empty() || sparse.size() != dense.size()) {
        continue;
      }
      const std::optional<double> crossing = Crossing(sparse, dense);
      std::string text = fmt::format(
          "{}, batch {}: DSA is {}", PhaseName(decode), batch,
          crossing ? fmt::format("cheaper than dense from position {:.0f} on", *crossing)
                   : "not cheaper than dense at any measured position");
      for (std::size_t i = 0; i < sparse.size(); ++i) {
        const double position = sparse[i].position;
        const bool named = std::abs(position - 32768) < 1024 || std::abs(position - 131072) < 4096;
        if (named || i + 1 == sparse.size()) {
          text += fmt::format("; at {:.0f} dense costs {:.2f}x", position,
                              dense[i].cost_us / sparse[i].cost_us);
        }
      }
      sentences.push_back(std::move(text));
    }
  }
  return sentences;
}

Result<PositionResult> MeasurePositions(const PositionOptions& options,
                                        const std::atomic<bool>& interrupted) {
  constexpr std::array<std::string_view, 2> kFiles = {"position.csv", "position.json"};
  DSA_RETURN_IF_ERROR(PrepareFolder(options.output, kFiles));
  DSA_ASSIGN_OR_RETURN(const ModelSource source, ModelSource::Open(options.model, options.load));
  if (!source.config().has_indexer()) {
    return InvalidArgument("model: it has no indexer, so there is nothing to compare");
  }
  DSA_ASSIGN_OR_RETURN(const Sizes sizes, ChooseSizes(options, source.config()));
  PositionResult result;
  result.config = source.config();
  Sweep sweep(options, sizes, interrupted, result);
  for (const Attention attention : {Attention::kSparse, Attention::kDense}) {
    const Status status = sweep.MeasureArm(source, attention);
    if (!status.ok() && result.rows.empty()) {
      return status.error();
    }
    if (!status.ok()) {
      result.complete = false;
      result.skipped.push_back(fmt::format("{}: {}", NameOf(attention), status.error().message));
    }
  }
  FitCurves(result);
  return result;
}

}  // namespace dsa::bench
