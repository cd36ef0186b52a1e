#include "server/engine/expert_load.h"

#include "common/check.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <numeric>

namespace dsa {

ExpertLoad::ExpertLoad(const ExpertExtents& extents)
    : extents_(extents),
      pairs_(static_cast<std::size_t>(extents.layers * extents.experts)),
      recent_(pairs_.size()) {}

void ExpertLoad::Add(std::span<const std::int32_t> pairs) {
  if (pairs.empty() || recent_.empty()) {
    return;
  }
  DSA_CHECK(pairs.size() == recent_.size(), "ExpertLoad: {} counts, {} layers of {} experts",
            pairs.size(), extents_.layers, extents_.experts);
  std::transform(recent_.begin(), recent_.end(), pairs.begin(), recent_.begin(), std::plus<>());
}

void ExpertLoad::Look() {
  steps_ = 0;
  std::transform(pairs_.begin(), pairs_.end(), recent_.begin(), pairs_.begin(), std::plus<>());
  std::fill(recent_.begin(), recent_.end(), 0);
}

ExpertLoad::Hits ExpertLoad::Of(const ExpertShare& share) const {
  Hits hits;
  std::int64_t largest = 0;
  for (std::int64_t layer = 0; layer < extents_.layers; ++layer) {
    const auto first = pairs_.begin() + layer * extents_.experts + share.first;
    const auto last = first + share.count;
    hits.pairs = std::accumulate(first, last, hits.pairs);
    largest += share.count == 0 ? 0 : *std::max_element(first, last);
  }
  if (hits.pairs > 0) {
    hits.max_over_mean = static_cast<double>(largest) * static_cast<double>(share.count) /
                         static_cast<double>(hits.pairs);
  }
  return hits;
}

}  // namespace dsa
