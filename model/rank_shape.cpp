#include "model/rank_shape.h"

#include "common/check.h"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa {
namespace {

// The rank's share of `extent` in whole units, of which the last may be cut off.
Part ShareOf(std::int64_t extent, std::int64_t unit, const RankPlace& place) {
  const std::int64_t units = (extent + unit - 1) / unit;
  const auto border = [&](std::int64_t rank) {
    return std::min(units * rank / place.layout.ranks * unit, extent);
  };
  const std::int64_t first = border(place.rank);
  return {.first = first, .count = border(place.rank + 1) - first};
}

bool CanSplit(const ModelConfig& config, std::int64_t ranks) {
  if (config.heads % ranks != 0) {
    return false;
  }
  const std::int64_t heads = config.heads / ranks;
  return ranks == 1 || !config.quantized ||
         (heads * (config.nope + kRopeWidth) % kWeightBlock == 0 &&
          heads * config.value % kWeightBlock == 0);
}

}  // namespace

RankShape ShapeOf(const ModelConfig& config, const RankPlace& place) {
  DSA_CHECK(
      place.rank >= 0 && place.rank < place.layout.ranks && CanSplit(config, place.layout.ranks),
      "RankShape: rank {} of {}, a model of {} heads", place.rank, place.layout.ranks,
      config.heads);
  return {.rank = place.rank,
          .ranks = place.layout.ranks,
          .heads = ShareOf(config.heads, config.heads / place.layout.ranks, place),
          .experts = place.layout.expert_parallel ? ShareOf(config.experts, 1, place)
                                                  : Part{.first = 0, .count = config.experts},
          .expert_width = place.layout.expert_parallel
                              ? Part{.first = 0, .count = config.expert_width}
                              : ShareOf(config.expert_width, kWeightBlock, place),
          .dense_width = ShareOf(config.dense_width, kWeightBlock, place),
          .shared_width = ShareOf(config.shared_width, kWeightBlock, place),
          .vocabulary = ShareOf(config.vocabulary, 1, place),
          .layers = {.first = 0, .count = config.layers}};
}

RankShape WholeModel(const ModelConfig& config) {
  return ShapeOf(config, {.rank = 0, .layout = {}});
}

std::vector<std::int64_t> TensorParallelSizes(const ModelConfig& config) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t ranks = 1; ranks <= config.heads; ++ranks) {
    if (CanSplit(config, ranks)) {
      sizes.push_back(ranks);
    }
  }
  return sizes;
}

}  // namespace dsa
