// A part of a model that fits on one GPU, for benchmarks with random weights: real sizes of what is
// kept, derived from the whole model's configuration.  Pure.
#pragma once

#include "common/status.h"
#include "model/model_config.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace dsa {

struct ModelSlice {
  // What one of so many ranks of expert parallelism holds: that share of the routed experts, chosen
  // without groups, and everything else whole.  A row still goes to experts_per_token of them, so
  // that an expert has as many rows as where every rank brings as many rows.  1: all experts.
  std::int64_t expert_ranks = 1;
  std::int64_t layers = 0;  // the first ones; 0: all

  bool is_whole() const { return expert_ranks == 1 && layers == 0; }
};

inline constexpr std::string_view kModelSlices = "all, epN, layers=N, or both: ep32,layers=8";

// "all", "ep32", "layers=8", "ep32,layers=8".  INVALID_ARGUMENT with the part that is none of
// these.
Result<ModelSlice> ParseModelSlice(std::string_view text);

// The slice's configuration; without MTP layers.  INVALID_ARGUMENT naming value and what is
// possible where the model has fewer layers, or not so many experts.
Result<ModelConfig> SliceOf(const ModelConfig& whole, const ModelSlice& slice);

}  // namespace dsa
