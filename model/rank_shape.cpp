#include "model/rank_shape.h"

#include "common/check.h"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa {
namespace {

// The share of `extent` of one of so many ranks in whole units, of which the last may be cut off.
Part ShareOf(std::int64_t extent, std::int64_t unit, std::int64_t rank, std::int64_t ranks) {
  const std::int64_t units = (extent + unit - 1) / unit;
  const auto border = [&](std::int64_t index) {
    return std::min(units * index / ranks * unit, extent);
  };
  const std::int64_t first = border(rank);
  return {.first = first, .count = border(rank + 1) - first};
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
  const RankLayout& layout = place.layout;
  DSA_CHECK(place.rank >= 0 && place.rank < layout.all_ranks() && CanSplit(config, layout.ranks),
            "RankShape: rank {} of {}, a model of {} heads", place.rank, layout.all_ranks(),
            config.heads);
  DSA_CHECK(layout.data_ranks == 1 || layout.expert_parallel,
            "RankShape: {} data ranks without expert parallelism", layout.data_ranks);
  const auto share = [&](std::int64_t extent, std::int64_t unit) {
    return ShareOf(extent, unit, place.tensor_rank(), layout.ranks);
  };
  const auto whole = [](std::int64_t extent) { return Part{.first = 0, .count = extent}; };
  return {.rank = place.tensor_rank(),
          .ranks = layout.ranks,
          .data_ranks = layout.data_ranks,
          .heads = share(config.heads, config.heads / layout.ranks),
          .experts = layout.expert_parallel
                         ? ShareOf(config.experts, 1, place.rank, layout.all_ranks())
                         : whole(config.experts),
          .expert_width = layout.expert_parallel ? whole(config.expert_width)
                                                 : share(config.expert_width, kWeightBlock),
          .dense_width = share(config.dense_width, kWeightBlock),
          .shared_width = layout.data_ranks > 1 ? whole(config.shared_width)
                                                : share(config.shared_width, kWeightBlock),
          .vocabulary = share(config.vocabulary, 1),
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
