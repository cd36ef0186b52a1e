// Up to which position prompts attend with expanded keys (masked MHA) before a selection of keys
// (sparse prefill) is faster: measured on the loaded model, `masked_mha_until: auto`.
//
// A masked row costs more the further it stands, a sparse one as much everywhere but for its index
// scores.  Both are straight lines, so two positions tell where they cross.
#pragma once

#include "common/clock.h"
#include "scheduler/scheduler_config.h"
#include "server/engine/executor.h"

#include <cstdint>

namespace dsa {

// Borders are multiples of it: what a start measures is not exact, and results depend on it.
inline constexpr std::int64_t kMaskedBorderUnit = 1024;
// No border is measured beyond; expanded keys of so many positions are what a server has room for.
inline constexpr std::int64_t kMaskedBorderMax = 16 * kMaskedBorderUnit;

struct MaskedBorderOptions {
  std::int64_t positions_max;  // that the executor and its caches have room for; > 0
  std::int64_t rows_max;       // of a step; > 0
  std::int64_t context_max;    // StepLimits
  std::int64_t vocabulary;
  AttentionMode attention;
  std::int64_t index_topk;      // under kSparse
  std::int64_t data_ranks = 1;  // that the executor has; all run each step
};

// Rows of prompts per second about a position.
struct PrefillRates {
  std::int64_t position;
  double masked_per_s;
  double absorbed_per_s;  // sparse, or dense where nothing is selected
};

struct MaskedBorder {
  std::int64_t until = 0;  // SchedulerConfig::masked_mha_until
  PrefillRates near{};     // all zero where the positions are too few to measure: then nothing is
  PrefillRates far{};      // masked
};

// Where lines through the two points cross, to the nearest multiple of kMaskedBorderUnit in
// [0, positions_max].
std::int64_t BorderOf(const PrefillRates& near, const PrefillRates& far,
                      std::int64_t positions_max);

// Runs a few steps of an executor that has run none, on the thread that made it, and leaves nothing
// in its caches or block tables that anyone reads.
MaskedBorder MeasureMaskedBorder(StepExecutor& executor, const Clock& clock,
                                 const MaskedBorderOptions& options);

}  // namespace dsa
