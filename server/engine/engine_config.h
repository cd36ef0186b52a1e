// What an engine is made of beside its executor.  Constant after start.
#pragma once

#include "common/ids.h"
#include "common/status.h"
#include "scheduler/scheduler_config.h"
#include "server/engine/expert_load.h"

#include <cstdint>
#include <string>
#include <vector>

namespace dsa {

struct EngineConfig {
  SchedulerConfig scheduler;           // of each data rank, but for waiting_max, which is of all
  std::int32_t blocks = 0;             // of the paged caches of each data rank; > 0
  std::int32_t tokens_per_block = 64;  // the kernels fix 64; tests use others
  std::int64_t vocabulary = 0;         // ids below it exist; > 0
  std::vector<TokenId> end_ids;        // each below vocabulary
  std::string cache_identity;          // names model, configuration and cache format
  // Rows of the steps in which every sequence decodes (BatchBuilder::Config); empty: as they come.
  std::vector<std::int64_t> row_buckets{};
  std::int64_t data_ranks = 1;  // that have sequences and caches of their own; > 0
  ExpertExtents experts{};      // whose pairs the executor's steps report
  // By data rank: the experts on its devices.  Empty: one data rank, which has all.
  std::vector<ExpertShare> expert_shares{};
  std::int32_t hash_bits = 256;  // of block hashes; fewer only in tests
};

// INVALID_ARGUMENT naming the field, its value and what is allowed.
Status Validate(const EngineConfig& config);

}  // namespace dsa
