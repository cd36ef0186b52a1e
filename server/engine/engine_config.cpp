#include "server/engine/engine_config.h"

#include "cache/prefix_hash.h"

#include <string_view>

#include <fmt/format.h>

namespace dsa {
namespace {

Status CheckRange(std::string_view name, std::int64_t value, std::int64_t minimum,
                  std::int64_t maximum) {
  if (value >= minimum && value <= maximum) {
    return {};
  }
  return InvalidArgument(
      fmt::format("engine.{} is {}, allowed is {} to {}", name, value, minimum, maximum));
}

// Each has at most a block's tokens more than the one before: as many rows of padding have slots.
Status CheckRowBuckets(const EngineConfig& config) {
  std::int64_t previous = 0;
  for (const std::int64_t rows : config.row_buckets) {
    DSA_RETURN_IF_ERROR(
        CheckRange("row_buckets", rows, previous + 1, previous + config.tokens_per_block));
    previous = rows;
  }
  return config.row_buckets.empty()
             ? Status()
             : CheckRange("row_buckets.back", previous, config.scheduler.sequences_max,
                          config.scheduler.sequences_max);
}

Status CheckExpertShares(const EngineConfig& config) {
  if (!config.expert_shares.empty() || config.data_ranks > 1) {
    DSA_RETURN_IF_ERROR(
        CheckRange("expert_shares.size", static_cast<std::int64_t>(config.expert_shares.size()),
                   config.experts.experts == 0 ? 0 : config.data_ranks, config.data_ranks));
  }
  for (const ExpertShare& share : config.expert_shares) {
    DSA_RETURN_IF_ERROR(CheckRange("expert_shares.first", share.first, 0, config.experts.experts));
    DSA_RETURN_IF_ERROR(
        CheckRange("expert_shares.count", share.count, 0, config.experts.experts - share.first));
  }
  return {};
}

}  // namespace

Status Validate(const EngineConfig& config) {
  constexpr std::int64_t kNumberMax = 1 << 30;
  DSA_RETURN_IF_ERROR(Validate(config.scheduler));
  DSA_RETURN_IF_ERROR(CheckRange("blocks", config.blocks, 1, kNumberMax));
  DSA_RETURN_IF_ERROR(CheckRange("tokens_per_block", config.tokens_per_block, 1, kNumberMax));
  DSA_RETURN_IF_ERROR(CheckRange("vocabulary", config.vocabulary, 1, kNumberMax));
  DSA_RETURN_IF_ERROR(CheckRange("data_ranks", config.data_ranks, 1, kNumberMax));
  DSA_RETURN_IF_ERROR(CheckExpertShares(config));
  DSA_RETURN_IF_ERROR(CheckRange("hash_bits", config.hash_bits, 0, kHashBitsMax));
  for (const TokenId id : config.end_ids) {
    DSA_RETURN_IF_ERROR(CheckRange("end_ids", Value(id), 0, config.vocabulary - 1));
  }
  return CheckRowBuckets(config);
}

}  // namespace dsa
