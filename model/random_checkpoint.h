// Writes a small random checkpoint in DeepSeek-V3.2's own format, with a tokenizer: what the demo
// and the tests run on where no trained model is at hand.
#pragma once

#include "common/status.h"
#include "model/model_config.h"

#include <cstdint>
#include <string>

namespace dsa {

enum class CheckpointType : std::uint8_t { kFp8, kBf16, kF32 };

// Sizes are those of config.json; what the kernels fix (latent 512, rope 64, index head 128) is not
// a choice.
struct RandomCheckpointOptions {
  Architecture architecture = Architecture::kDeepseekV32;
  CheckpointType type = CheckpointType::kFp8;
  ScaleFormat scale_format = ScaleFormat::kPowerOfTwo;  // of fp8
  std::uint64_t seed = 0;
  std::int64_t shards = 2;
  std::int64_t vocabulary = 512;
  std::int64_t hidden = 256;
  std::int64_t layers = 4;
  std::int64_t dense_layers = 1;
  std::int64_t mtp_layers = 0;
  std::int64_t heads = 4;
  std::int64_t q_latent = 128;  // 0: q_proj, deepseek_v3 only
  std::int64_t nope = 128;
  std::int64_t value = 128;
  std::int64_t dense_width = 256;
  std::int64_t expert_width = 128;
  std::int64_t shared_experts = 1;
  std::int64_t experts = 16;
  std::int64_t experts_per_token = 4;
  std::int64_t expert_groups = 4;
  std::int64_t expert_groups_kept = 2;
  std::int64_t index_heads = 8;
  std::int64_t index_topk = 64;
  std::int64_t context_max = 163'840;
  bool tied_embeddings = false;
  bool normalize_expert_weights = true;  // norm_topk_prob
  float gate_bias_mean = 0;              // of e_score_correction_bias
};

// The same options always write the same bytes.  `folder` is made where it is missing; files in it
// are replaced.  INVALID_ARGUMENT for options that LoadModelConfig would refuse, and for a folder
// that can't be written.
Status WriteRandomCheckpoint(const RandomCheckpointOptions& options, const std::string& folder);

}  // namespace dsa
