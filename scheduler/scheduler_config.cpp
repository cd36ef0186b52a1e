#include "scheduler/scheduler_config.h"

#include <limits>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace dsa {
namespace {

Status CheckSetting(std::string_view name, std::int64_t value, std::int64_t minimum,
                    std::int64_t maximum) {
  if (value >= minimum && value <= maximum) {
    return {};
  }
  return InvalidArgument(
      fmt::format("scheduler.{} is {}, allowed is {} to {}", name, value, minimum, maximum));
}

}  // namespace

Status Validate(const SchedulerConfig& config) {
  constexpr std::int64_t kCountMax = 1 << 20;
  DSA_RETURN_IF_ERROR(CheckSetting("sequences_max", config.sequences_max, 1, kCountMax));
  DSA_RETURN_IF_ERROR(CheckSetting("step_tokens_max", config.step_tokens_max, 1, kCountMax));
  if (config.step_tokens_max < config.sequences_max) {
    return InvalidArgument(
        fmt::format("scheduler.step_tokens_max is {}, it must be at least sequences_max, {}",
                    config.step_tokens_max, config.sequences_max));
  }
  constexpr std::int64_t kStepTimeMaxUs = 60'000'000;
  DSA_RETURN_IF_ERROR(
      CheckSetting("step_time_target_us", config.step_time_target_us, 0, kStepTimeMaxUs));
  DSA_RETURN_IF_ERROR(CheckSetting("waiting_max", config.waiting_max, 1, kCountMax));
  constexpr std::int64_t kPositionsMax = std::numeric_limits<std::int32_t>::max();
  DSA_RETURN_IF_ERROR(
      CheckSetting("context_tokens_max", config.context_tokens_max, 2, kPositionsMax));
  DSA_RETURN_IF_ERROR(
      CheckSetting("prompt_logprob_rows_max", config.prompt_logprob_rows_max, 0, kCountMax));
  DSA_RETURN_IF_ERROR(CheckSetting("preemptions_max", config.preemptions_max, 0, kCountMax));
  if (config.attention == AttentionMode::kSparse) {
    DSA_RETURN_IF_ERROR(CheckSetting("index_topk", config.index_topk, 1, kPositionsMax));
  }
  DSA_RETURN_IF_ERROR(CheckSetting("masked_rows_min", config.masked_rows_min, 1, kPositionsMax));
  return CheckSetting("masked_mha_until", config.masked_mha_until, 0, kPositionsMax);
}

}  // namespace dsa
