#include "scheduler/validate.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include <fmt/format.h>

namespace dsa {
namespace {

// NaN is in no range.
Status CheckRange(std::string_view field, double value, double minimum, double maximum) {
  if (value >= minimum && value <= maximum) {
    return {};
  }
  return InvalidArgument(
      fmt::format("{} is {}, allowed is {} to {}", field, value, minimum, maximum));
}

Status CheckRange(std::string_view field, std::int64_t value, std::int64_t minimum,
                  std::int64_t maximum) {
  if (value >= minimum && value <= maximum) {
    return {};
  }
  return InvalidArgument(
      fmt::format("{} is {}, allowed is {} to {}", field, value, minimum, maximum));
}

Status CheckStopStrings(const std::vector<std::string>& strings) {
  if (static_cast<std::int64_t>(strings.size()) > kStopStringsMax) {
    return InvalidArgument(
        fmt::format("stop has {} strings, allowed are {}", strings.size(), kStopStringsMax));
  }
  std::int64_t total = 0;
  for (std::size_t i = 0; i < strings.size(); ++i) {
    const auto bytes = static_cast<std::int64_t>(strings[i].size());
    if (bytes < 1 || bytes > kStopStringBytesMax) {
      return InvalidArgument(
          fmt::format("stop[{}] has {} bytes, allowed are 1 to {}", i, bytes, kStopStringBytesMax));
    }
    total += bytes;
  }
  if (total > kStopStringBytesTotalMax) {
    return InvalidArgument(
        fmt::format("stop has {} bytes in all, allowed are {}", total, kStopStringBytesTotalMax));
  }
  return {};
}

Status CheckIds(std::string_view field, const std::vector<TokenId>& ids, std::int64_t vocabulary) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (Value(ids[i]) < 0 || Value(ids[i]) >= vocabulary) {
      return InvalidArgument(
          fmt::format("{}[{}] is {}, allowed is 0 to {}", field, i, Value(ids[i]), vocabulary - 1));
    }
  }
  return {};
}

Status CheckExternalId(std::string_view id) {
  if (static_cast<std::int64_t>(id.size()) > kExternalIdBytesMax) {
    return InvalidArgument(
        fmt::format("request_id has {} bytes, allowed are {}", id.size(), kExternalIdBytesMax));
  }
  constexpr std::string_view kAllowed =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
  const std::size_t bad = id.find_first_not_of(kAllowed);
  if (bad != std::string_view::npos) {
    return InvalidArgument(fmt::format(
        "request_id has byte 0x{:02X} at offset {}, allowed are letters, digits, '.', '_' and '-'",
        static_cast<unsigned char>(id[bad]), bad));
  }
  return {};
}

Status CheckBiases(const std::vector<LogitBias>& biases, std::int64_t vocabulary) {
  if (static_cast<std::int64_t>(biases.size()) > kLogitBiasesMax) {
    return InvalidArgument(
        fmt::format("logit_bias has {} ids, allowed are {}", biases.size(), kLogitBiasesMax));
  }
  std::vector<TokenId> ids;
  for (const LogitBias& bias : biases) {
    DSA_RETURN_IF_ERROR(CheckRange(fmt::format("logit_bias[{}]", Value(bias.id)), bias.add,
                                   -kLogitBiasMax, kLogitBiasMax));
    ids.push_back(bias.id);
  }
  DSA_RETURN_IF_ERROR(CheckIds("logit_bias", ids, vocabulary));
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice != ids.end()) {
    return InvalidArgument(
        fmt::format("logit_bias has {} twice, allowed is each id once", Value(*twice)));
  }
  return {};
}

Status CheckAdjustments(const SamplingParams& sampling, std::int64_t vocabulary) {
  DSA_RETURN_IF_ERROR(
      CheckRange("frequency_penalty", sampling.frequency_penalty, -kPenaltyMax, kPenaltyMax));
  DSA_RETURN_IF_ERROR(
      CheckRange("presence_penalty", sampling.presence_penalty, -kPenaltyMax, kPenaltyMax));
  const float repetition = sampling.repetition_penalty;
  if (!(repetition > 0.0F && repetition <= kRepetitionPenaltyMax)) {
    return InvalidArgument(
        fmt::format("repetition_penalty is {}, allowed is above 0 and at most {}", repetition,
                    kRepetitionPenaltyMax));
  }
  return CheckBiases(sampling.logit_bias, vocabulary);
}

}  // namespace

Status Validate(const SamplingParams& sampling, std::int64_t vocabulary) {
  DSA_RETURN_IF_ERROR(CheckRange("temperature", sampling.temperature, 0.0, 2.0));
  if (!(sampling.top_p > 0.0F && sampling.top_p <= 1.0F)) {
    return InvalidArgument(
        fmt::format("top_p is {}, allowed is above 0 and at most 1", sampling.top_p));
  }
  DSA_RETURN_IF_ERROR(CheckRange("min_p", sampling.min_p, 0.0, 1.0));
  DSA_RETURN_IF_ERROR(CheckRange("top_k", std::int64_t{sampling.top_k}, 0, vocabulary));
  if (sampling.top_logprobs.has_value()) {
    DSA_RETURN_IF_ERROR(CheckRange("top_logprobs", std::int64_t{*sampling.top_logprobs}, 0,
                                   std::int64_t{kTopLogprobsLimit}));
  }
  return CheckAdjustments(sampling, vocabulary);
}

Status Validate(const StopConditions& stop, std::int64_t vocabulary) {
  if (stop.max_tokens < 0) {
    return InvalidArgument(fmt::format("max_tokens is {}, it must be at least 0", stop.max_tokens));
  }
  if (stop.min_tokens < 0 || stop.min_tokens > stop.max_tokens) {
    return InvalidArgument(fmt::format("min_tokens is {}, allowed is 0 to max_tokens, {}",
                                       stop.min_tokens, stop.max_tokens));
  }
  if (static_cast<std::int64_t>(stop.stop_ids.size()) > kStopIdsMax) {
    return InvalidArgument(
        fmt::format("stop_ids has {} ids, allowed are {}", stop.stop_ids.size(), kStopIdsMax));
  }
  DSA_RETURN_IF_ERROR(CheckIds("stop_ids", stop.stop_ids, vocabulary));
  return CheckStopStrings(stop.stop_strings);
}

Status Validate(const Request& request, std::int64_t vocabulary) {
  DSA_RETURN_IF_ERROR(CheckExternalId(request.external_id));
  if (request.prompt.empty()) {
    return InvalidArgument("prompt has 0 tokens, it must have at least 1");
  }
  DSA_RETURN_IF_ERROR(CheckIds("prompt", request.prompt, vocabulary));
  if (request.prompt_logprobs.has_value()) {
    DSA_RETURN_IF_ERROR(CheckRange("prompt_logprobs", std::int64_t{*request.prompt_logprobs}, 0,
                                   std::int64_t{kTopLogprobsLimit}));
  }
  DSA_RETURN_IF_ERROR(Validate(request.sampling, vocabulary));
  return Validate(request.stop, vocabulary);
}

}  // namespace dsa
