// `dsa bench position`: what a token costs at each position of the context, prefill and decode, DSA
// and its dense twin, from steps of the real engine.  Main thread.
#pragma once

#include "common/clock.h"
#include "common/status.h"
#include "server/bench/operator_times.h"
#include "server/bench/position_fit.h"
#include "server/bench/step_runner.h"
#include "server/model_source.h"

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dsa::bench {

struct PositionOptions {
  std::string model;
  std::string device = "cpu";
  std::int64_t threads = 0;
  LoadMode load = LoadMode::kCheckpoint;
  std::string slice = "all";
  // The dense curve is that of `attention: dense`, which has the indexer's weights and still writes
  // index keys; else that of the twin without.
  bool dense_keeps_index = false;
  std::vector<std::int64_t> positions;  // empty: the default ones that the model reaches
  std::int64_t position_max = 0;        // of the default ones; 0: the model's, at most 128K
  std::int64_t batch = 1;               // the fixed one
  std::int64_t batch_max = 0;           // the largest that is tried; 0: 256, on a CPU 4
  std::int64_t chunk_tokens = 0;        // of a prefill step; 0: 2048, on a CPU 64
  // Prompt rows below take the masked path, the dense twin's all where it is not 0; -1: as a server
  // measures it at start, on a CPU 0.
  std::int64_t masked_until = -1;
  bool quick = false;
  double gpu_hour_usd = 2;
  std::string commit;  // for the files
  std::string output;
};

// Where a point's step goes.
struct PointOperators {
  double step_us = 0;   // what the times are parts of: the mean of instrumented steps, or a replay
  double to_plain = 0;  // what the instrumented step, or the sum of its parts, is of the plain one
  OperatorTimes times_us{};
};

// One measured point: a line of position.csv.
struct PositionRow {
  bool decode;
  Attention attention;
  std::int64_t position;  // as asked for
  std::int64_t start;     // of the measured tokens
  std::int64_t end;
  std::int64_t batch;  // sequences of a decode step; 1 with prefill
  std::int64_t chunk;  // rows of a step
  std::int64_t steps = 0;
  double step_us = 0;  // median
  double step_us_p10 = 0;
  double step_us_p90 = 0;
  double error_us = 0;  // of the median, one standard deviation
  std::optional<PointOperators> operators{};

  double middle() const { return static_cast<double>(start + end) / 2; }
  double us_per_token() const { return step_us / static_cast<double>(chunk); }
  double attention_us() const;  // of the step, the indexer's selection included; 0: not known
};

// What of a step a curve is about.
enum class Part : std::uint8_t { kStep, kAttention };

struct PositionFit {
  Part part;
  bool decode;
  Attention attention;
  std::int64_t batch;
  CostFit fit;
};

struct PositionResult {
  ModelConfig config;
  ModelConfig whole;              // as many layers as the model has; other slices as they are
  std::int64_t expert_ranks = 1;  // of which the slice is one, without the exchange between them
  std::string model_name;
  std::string device_name;
  KvFormat kv_format;
  std::int64_t masked_until = 0;  // of DSA's prompts
  bool dense_is_masked = false;   // all of the dense twin's prompts
  std::vector<PositionRow> rows;
  std::vector<PositionFit> fits;
  // Decode after a real prefill of every sequence, relative to copied keys; where compared.
  std::optional<double> computed_to_copied;
  std::vector<std::string> skipped;  // "decode, dense, 131072: ..."
  bool complete = true;
  bool is_scaled = false;  // made by ScaledToWhole

  bool is_cut() const { return whole.layers != config.layers; }
};

// Measures by `clock`; errors of single points are in `skipped`, an error returned is of them all.
Result<PositionResult> MeasurePositions(const PositionOptions& options, const Clock& clock,
                                        const std::atomic<bool>& interrupted);

// Writes position.csv, .json, .gnuplot and, where gnuplot is installed, .png and .svg; prints the
// table, a plot and the decomposition.
Status WritePositions(const PositionOptions& options, const PositionResult& result);

// Of a slice of the layers what all of them would take: every operator by the number of its layers,
// what no operator accounts for by the number of all.
PositionResult ScaledToWhole(const PositionResult& result);

// Fills `fits`.
void FitCurves(PositionResult& result);

// "decode, batch 4: DSA is cheaper than dense from position 3100 on; at 8192 by 2.1x" for each
// phase and batch.
std::vector<std::string> PositionSentences(const PositionResult& result);

// The curve of one phase, attention and batch, in ascending positions.
std::vector<CostPoint> CurveOf(const PositionResult& result, bool decode, Attention attention,
                               std::int64_t batch, Part part = Part::kStep);
// The batches of a phase, ascending.
std::vector<std::int64_t> BatchesOf(const PositionResult& result, bool decode);

inline const char* NameOf(Attention attention) {
  return attention == Attention::kSparse ? "sparse" : "dense";
}
inline const char* PhaseName(bool decode) {
  return decode ? "decode" : "prefill";
}

}  // namespace dsa::bench
