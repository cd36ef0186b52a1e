// The model and the requests that ranks are held to, as threads (ranks_test.cpp) and on GPUs
// (ranks_cuda_test.cpp).
#pragma once

#include "model/random_checkpoint.h"
#include "tests/model/sequence_runner.h"

#include <vector>

namespace dsa::testing {

// Widths of three and two blocks of 128: a rank of four has none of the dense MLP, two have none of
// an expert.  Vocabulary of no multiple of four.
inline RandomCheckpointOptions SplitOptions(Architecture architecture, CheckpointType type) {
  RandomCheckpointOptions options;
  options.architecture = architecture;
  options.type = type;
  options.seed = 21;
  options.vocabulary = 122;
  options.hidden = 128;
  options.layers = 3;
  options.heads = 4;
  options.q_latent = architecture == Architecture::kDeepseekV3 ? 0 : 64;
  options.dense_width = 384;
  options.expert_width = 256;
  options.experts = 8;
  options.experts_per_token = 2;
  options.index_heads = 4;
  options.index_topk = 64;
  if (architecture == Architecture::kGlmMoeDsa) {
    options.nope = 192;
    options.value = 256;
    options.expert_groups = 1;
    options.expert_groups_kept = 1;
    options.tied_embeddings = true;
  }
  return options;
}

inline std::vector<std::int32_t> RankPrompt(std::int64_t tokens, std::int32_t seed) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] =
        static_cast<std::int32_t>((i * 37 + i * i * 11 + static_cast<std::size_t>(seed)) % 119);
  }
  return ids;
}

// One prompt beyond top-k, others below it and around a block; replies of different length.
inline std::vector<SequenceRequest> RankRequests(std::int64_t long_prompt) {
  return {{.prompt = RankPrompt(long_prompt, 3), .max_tokens = 10},
          {.prompt = RankPrompt(1, 4), .max_tokens = 3},
          {.prompt = RankPrompt(64, 5), .max_tokens = 20}};
}

}  // namespace dsa::testing
