// What `dsa bench position` measures where: positions, rows of steps, and how often.
#pragma once

#include "common/status.h"
#include "server/bench/position_bench.h"
#include "server/bench/step_runner.h"

#include <cstdint>
#include <vector>

namespace dsa::bench {

// How long a point is repeated.
struct RepeatLimits {
  std::int64_t minimum;  // more where that takes no time to speak of
  std::int64_t maximum;
  double seconds;
};

struct PositionSizes {
  std::vector<std::int64_t> positions;  // ascending
  std::int64_t chunk;
  std::int64_t batch_max;
  std::int64_t context_max;   // the model's
  std::int64_t masked_until;  // -1: measured
  RepeatLimits repeats;

  // All prompt rows of the dense twin take the masked path.
  bool dense_is_masked() const { return masked_until != 0; }
  // What measures `sequences` of them, 2 with prefill, at every position up to `position`.
  StepRunnerOptions RunnerOptions(bool decode, Attention attention, std::int64_t sequences,
                                  std::int64_t position) const;
};

// INVALID_ARGUMENT naming the option, its value and what is allowed.
Result<PositionSizes> ChoosePositionSizes(const PositionOptions& options, const ModelConfig& model);

// The first ones of the positions, all whose caches fit for so many sequences, all parts of a step
// beside them.
std::vector<std::int64_t> PositionsThatFit(const BenchModel& model, const PositionSizes& sizes,
                                           bool decode, Attention attention,
                                           std::int64_t sequences);

}  // namespace dsa::bench
