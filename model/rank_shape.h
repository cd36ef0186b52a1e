// What one rank holds of the model.  Ops and buffers have local extents; the one place where the
// partial sums of ranks would be added is Backend::AddNorm, and the one where tokens would go to
// other ranks' experts is Backend::ExpertMlp.  Today there is one rank.
#pragma once

#include "model/model_config.h"

#include <cstdint>

namespace dsa {

struct RankShape {
  std::int64_t rank;          // in [0, ranks)
  std::int64_t ranks;         // > 0
  std::int64_t heads;         // attention heads; index heads are on every rank
  std::int64_t first_expert;  // routed experts [first_expert, first_expert + experts)
  std::int64_t experts;
  std::int64_t dense_width;  // inner width of the dense MLP, of the shared expert
  std::int64_t shared_width;
  std::int64_t first_layer;  // layers [first_layer, first_layer + layers)
  std::int64_t layers;
};

// One rank that holds everything.
constexpr RankShape WholeModel(const ModelConfig& config) {
  return {.rank = 0,
          .ranks = 1,
          .heads = config.heads,
          .first_expert = 0,
          .experts = config.experts,
          .dense_width = config.dense_width,
          .shared_width = config.shared_width,
          .first_layer = 0,
          .layers = config.layers};
}

}  // namespace dsa
