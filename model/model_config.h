// What a checkpoint's config.json and generation_config.json say about the model: validated
// dimensions, formats and defaults.  Plain data; nothing in it depends on the machine.
#pragma once

#include "common/status.h"
#include "common/view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/rope.h"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// "model_type" of config.json.
enum class Architecture : std::uint8_t {
  kDeepseekV32,  // deepseek_v32: V3.2-Exp, V3.2, Speciale
  kDeepseekV3,   // deepseek_v3: V3, R1, V3.1, V3.1-Terminus; no indexer, dense attention
  kGlmMoeDsa,    // glm_moe_dsa: GLM-5, GLM-5.1
};
std::string_view ToString(Architecture architecture);

// Sizes that the kernels fix; a configuration with another value is refused.
inline constexpr std::int64_t kLatentWidth = kLatentValues;       // kv_lora_rank
inline constexpr std::int64_t kRopeWidth = kLatentRopeValues;     // qk_rope_head_dim
inline constexpr std::int64_t kIndexHeadWidth = kIndexerValues;   // index_head_dim
inline constexpr std::int64_t kRopeFrequencies = kRopeWidth / 2;  // pairs of a rotated vector
inline constexpr std::int64_t kWeightBlock = 128;                 // rows and columns of a scale
inline constexpr float kIndexNormEps = 1e-6F;                     // of the indexer's LayerNorm

// Sampling parameters of a request that names none; generation_config.json.
struct SamplingDefaults {
  float temperature = 1.0F;         // [0, 2]; 0 where do_sample is false
  float top_p = 1.0F;               // (0, 1]
  float min_p = 0.0F;               // [0, 1]
  std::int32_t top_k = 0;           // [0, vocabulary]; 0 keeps all
  float repetition_penalty = 1.0F;  // (0, 10]; 1 changes nothing
};

struct ModelConfig {
  Architecture architecture = Architecture::kDeepseekV32;

  std::int64_t vocabulary = 0;    // rows of the embedding
  std::int64_t hidden = 0;        // D, a multiple of 8
  std::int64_t layers = 0;        // without MTP layers
  std::int64_t dense_layers = 0;  // leading layers with a dense MLP; <= layers
  std::int64_t mtp_layers = 0;    // further layers in the checkpoint, never loaded
  std::int64_t context_max = 0;   // max_position_embeddings: positions are below it
  bool tied_embeddings = false;   // the head is the embedding

  std::int64_t heads = 0;     // attention heads
  std::int64_t q_latent = 0;  // q_lora_rank; 0: q_proj instead (deepseek_v3 only)
  std::int64_t nope = 0;      // N: width of a q/k head without RoPE
  std::int64_t value = 0;     // V: width of a value head
  double softmax_scale = 0;   // (N + 64)^-1/2, times YaRN's factor

  std::int64_t index_heads = 0;  // 0 without DSA
  std::int64_t index_topk = 0;   // 0 without DSA
  RopeLayout index_rope_layout = RopeLayout::kHalfSplit;

  std::int64_t dense_width = 0;         // of the dense layers' MLP
  std::int64_t expert_width = 0;        // of one routed expert
  std::int64_t shared_width = 0;        // of the shared expert; 0: none
  std::int64_t experts = 0;             // routed experts of a layer; 0 where every layer is dense
  std::int64_t experts_per_token = 0;   // <= experts in the groups kept
  std::int64_t expert_groups = 0;       // divides experts
  std::int64_t expert_groups_kept = 0;  // <= expert_groups
  bool normalize_expert_weights = true;
  float routed_scale = 0;

  float norm_eps = 0;         // layer norms and the final norm
  float latent_norm_eps = 0;  // q_a and kv_a norms

  // RoPE: angle of pair i at position p is p * rope_frequencies[i], YaRN applied.
  std::array<double, kRopeFrequencies> rope_frequencies{};

  DataType activation_type = DataType::kBf16;      // kF32 or kBf16; also of unquantized weights
  bool quantized = false;                          // linear weights are fp8 with 128 x 128 scales
  ScaleFormat scale_format = ScaleFormat::kPlain;  // of fp8 activations and weights

  std::vector<std::int32_t> end_ids;  // not empty, ascending, in [0, vocabulary)
  SamplingDefaults sampling;

  // Keys that nothing here reads and that change no answer as far as is known: of config.json, and
  // "generation_config.KEY" and "quantization_config.KEY".
  std::vector<std::string> ignored_keys;

  bool has_indexer() const { return index_topk > 0; }
  std::int64_t indexer_layers() const { return has_indexer() ? layers : 0; }
  // The cache format that fits the checkpoint: fp8, else the activation type.
  KvFormat default_kv_format() const;
};

// INVALID_ARGUMENT naming file, key, value and what is supported.  `generation_json` is empty
// where the checkpoint has no generation_config.json; `folder` opens the messages.
Result<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_json,
                                     const std::string& folder);

// Whether generation_config.json counts.
enum class GenerationFile : std::uint8_t { kRead, kLeaveOut };

// Reads both files.  NOT_FOUND without config.json.  Logs the keys that are ignored.
Result<ModelConfig> LoadModelConfig(const std::string& folder,
                                    GenerationFile generation = GenerationFile::kRead);

}  // namespace dsa
