// How long a step of a model would take on GPUs that are not there: each section's bytes and FLOPs
// on a rank, at the share of the GPU's rates that was measured for the section
// (server/step_times.h).
//
//   call = a + s * max(bytes / copy rate, fp8 FLOPs / fp8 rate + bf16 FLOPs / bf16 rate)
//
// Where a section was measured at two sizes a and s are the line through both; else a is that of
// the GPU which this one borrows from, or what launches take.  Between numbers of rows they are
// interpolated; experts between pairs of a row and an expert that an expert gets.  Collectives were
// measured on two GPUs and are extrapolated.
#pragma once

#include "model/model_config.h"
#include "model/rank_shape.h"
#include "server/step_times.h"

#include <array>
#include <cstdint>
#include <optional>

namespace dsa {

struct StepToPredict {
  bool is_prefill;       // rows of one sequence, else of one each
  std::int64_t rows;     // of each data rank
  std::int64_t visible;  // keys that a row sees; of a prefill's rows the last one
  // Routed experts of a layer that get a row, of all ranks.  Absent: as rows that choose evenly do.
  std::optional<double> experts_hit{};
};

struct StepPrediction {
  double total_us = 0.0;
  std::array<double, kStepSections> section_us{};  // all calls
  double beyond_us = 0.0;                          // the way from one section to the next
  double collectives_us = 0.0;
};

// Whether the table holds for the model: it has an indexer, bfloat16 activations, fp8 weights and
// at least a hidden width of 4096, beside which launches are little.
bool CanPredict(const ModelConfig& model);

// Of the rank that takes longest.
StepPrediction PredictStep(const GpuTimes& gpu, const ModelConfig& model, const RankLayout& layout,
                           const StepToPredict& step);

// One collective among so many ranks, 1 or more; 0 of one.
double AllReduceUs(std::int64_t ranks, std::int64_t rows, std::int64_t hidden);
double AllGatherUs(std::int64_t ranks, std::int64_t rows, std::int64_t cols);
// Dispatch and Combine of a layer together, of so many rows per data rank.
double ExchangeUs(std::int64_t data_ranks, std::int64_t rows, const ModelConfig& model);

}  // namespace dsa
