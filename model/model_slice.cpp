#include "model/model_slice.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <system_error>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kNumberMax = 4096;

// The number behind `prefix`, in [1, 4096], or nullopt.
std::optional<std::int64_t> NumberBehind(std::string_view part, std::string_view prefix) {
  if (!part.starts_with(prefix)) {
    return std::nullopt;
  }
  part.remove_prefix(prefix.size());
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), number);
  const bool is_whole = error == std::errc() && end == part.data() + part.size();
  return is_whole && number >= 1 && number <= kNumberMax ? std::optional(number) : std::nullopt;
}

}  // namespace

Result<ModelSlice> ParseModelSlice(std::string_view text) {
  ModelSlice slice;
  if (text == "all") {
    return slice;
  }
  std::string_view rest = text;
  do {
    const std::string_view part = rest.substr(0, rest.find(','));
    const auto ranks = NumberBehind(part, "ep");
    const auto layers = NumberBehind(part, "layers=");
    const bool is_again = (ranks && slice.expert_ranks != 1) || (layers && slice.layers != 0);
    const bool ends_in_comma = part.size() + 1 == rest.size();
    if ((!ranks && !layers) || is_again || ends_in_comma) {
      return InvalidArgument(fmt::format("slice: '{}' is not {}", text, kModelSlices));
    }
    slice.expert_ranks = ranks.value_or(slice.expert_ranks);
    slice.layers = layers.value_or(slice.layers);
    rest.remove_prefix(part.size() == rest.size() ? part.size() : part.size() + 1);
  } while (!rest.empty());
  return slice;
}

Result<ModelConfig> SliceOf(const ModelConfig& whole, const ModelSlice& slice) {
  ModelConfig config = whole;
  if (slice.is_whole()) {
    return config;
  }
  config.mtp_layers = 0;
  if (slice.layers > whole.layers) {
    return InvalidArgument(
        fmt::format("slice: layers={} of a model with {}", slice.layers, whole.layers));
  }
  if (slice.layers > 0) {
    config.layers = slice.layers;
    config.dense_layers = std::min(whole.dense_layers, slice.layers);
  }
  if (slice.expert_ranks > 1) {
    const std::int64_t experts = whole.experts / slice.expert_ranks;
    if (experts * slice.expert_ranks != whole.experts || experts < whole.experts_per_token ||
        experts == 0) {
      return InvalidArgument(
          fmt::format("slice: ep{} of a model with {} routed experts, of which a rank needs the {} "
                      "of a token at least",
                      slice.expert_ranks, whole.experts, whole.experts_per_token));
    }
    config.experts = experts;
    config.expert_groups = 1;
    config.expert_groups_kept = 1;
  }
  return config;
}

}  // namespace dsa
