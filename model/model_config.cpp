#include "model/model_config.h"

#include "common/file.h"
#include "common/json.h"
#include "model/neutral_keys.h"
#include "model/rope_config.h"
#include "model/safetensors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <span>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kConfigBytesMax = 16 << 20;

// An integer key that is a field as it stands.
struct IntegerKey {
  std::string_view key;
  std::int64_t ModelConfig::*field;
  std::int64_t minimum;
  std::int64_t maximum;
  std::int64_t multiple;  // what the kernels' vector loads need
};
constexpr IntegerKey kDimensions[] = {
    {"vocab_size", &ModelConfig::vocabulary, 2, 1 << 24, 1},
    {"hidden_size", &ModelConfig::hidden, 8, 1 << 16, 8},
    {"num_hidden_layers", &ModelConfig::layers, 1, 1024, 1},
    {"max_position_embeddings", &ModelConfig::context_max, 1, 1 << 22, 1},
    {"num_attention_heads", &ModelConfig::heads, 1, 1024, 1},
    {"qk_nope_head_dim", &ModelConfig::nope, 8, 512, 8},
    {"v_head_dim", &ModelConfig::value, 8, 512, 8},
    {"intermediate_size", &ModelConfig::dense_width, 8, 1 << 18, 8},
};
constexpr IntegerKey kIndexerDimensions[] = {
    {"index_n_heads", &ModelConfig::index_heads, 1, 256, 1},
    {"index_topk", &ModelConfig::index_topk, 1, 1 << 16, 1},
};
constexpr IntegerKey kExpertDimensions[] = {
    {"moe_intermediate_size", &ModelConfig::expert_width, 8, 1 << 16, 8},
    {"n_routed_experts", &ModelConfig::experts, 1, 4096, 1},
    {"num_experts_per_tok", &ModelConfig::experts_per_token, 1, 4096, 1},
    {"n_group", &ModelConfig::expert_groups, 1, 4096, 1},
    {"topk_group", &ModelConfig::expert_groups_kept, 1, 4096, 1},
};

Status ReadIntegers(std::span<const IntegerKey> keys, JsonObject& json, ModelConfig& config) {
  for (const IntegerKey& entry : keys) {
    DSA_ASSIGN_OR_RETURN(config.*entry.field,
                         json.ReadInt(entry.key, entry.minimum, entry.maximum));
    if (config.*entry.field % entry.multiple != 0) {
      return json.MakeError(entry.key, fmt::format("{} is not a multiple of {}",
                                                   config.*entry.field, entry.multiple));
    }
  }
  return {};
}

enum class Presence : std::uint8_t { kRequired, kOptional };

// A key whose one supported value is `only`; null counts as absent.
Status ReadFixed(JsonObject& json, std::string_view key, const Json& only, Presence presence) {
  if (!json.Has(key) && presence == Presence::kOptional) {
    return {};
  }
  DSA_ASSIGN_OR_RETURN(const Json* value, json.ReadAny(key));
  if (*value != only) {
    return json.MakeError(key,
                          fmt::format("{} is not supported, only {}", Brief(*value), only.dump()));
  }
  return {};
}

Status ReadFixedKeys(JsonObject& json) {
  DSA_RETURN_IF_ERROR(ReadFixed(json, "kv_lora_rank", kLatentWidth, Presence::kRequired));
  DSA_RETURN_IF_ERROR(ReadFixed(json, "qk_rope_head_dim", kRopeWidth, Presence::kRequired));
  const auto optional = Presence::kOptional;
  DSA_RETURN_IF_ERROR(ReadFixed(json, "hidden_act", "silu", optional));
  DSA_RETURN_IF_ERROR(ReadFixed(json, "scoring_func", "sigmoid", optional));
  DSA_RETURN_IF_ERROR(ReadFixed(json, "topk_method", "noaux_tc", optional));
  DSA_RETURN_IF_ERROR(ReadFixed(json, "moe_layer_freq", 1, optional));
  DSA_RETURN_IF_ERROR(ReadFixed(json, "attention_bias", false, optional));
  DSA_RETURN_IF_ERROR(ReadFixed(json, "mlp_bias", false, optional));
  return ReadFixed(json, "rope_interleave", true, optional);
}

Status ReadArchitecture(JsonObject& json, ModelConfig& config) {
  DSA_ASSIGN_OR_RETURN(
      const std::string type,
      json.ReadChoice("model_type", {"deepseek_v32", "deepseek_v3", "glm_moe_dsa"}));
  for (const Architecture architecture :
       {Architecture::kDeepseekV32, Architecture::kDeepseekV3, Architecture::kGlmMoeDsa}) {
    if (type == ToString(architecture)) {
      config.architecture = architecture;
    }
  }
  return {};
}

Status ReadAttention(JsonObject& json, ModelConfig& config) {
  if (json.Has("num_key_value_heads")) {
    DSA_RETURN_IF_ERROR(ReadFixed(json, "num_key_value_heads", config.heads, Presence::kRequired));
  }
  if (json.Has("qk_head_dim")) {
    DSA_RETURN_IF_ERROR(
        ReadFixed(json, "qk_head_dim", config.nope + kRopeWidth, Presence::kRequired));
  }
  DSA_ASSIGN_OR_RETURN(const Json* q_lora_rank, json.ReadAny("q_lora_rank"));
  if (q_lora_rank->is_null() && config.architecture == Architecture::kDeepseekV3) {
    config.q_latent = 0;
    return {};
  }
  constexpr IntegerKey kKey[] = {{"q_lora_rank", &ModelConfig::q_latent, 8, 1 << 16, 8}};
  return ReadIntegers(kKey, json, config);
}

// A schedule in which layers share a selection is another graph.
Status RefuseSharedSelection(JsonObject& json) {
  DSA_RETURN_IF_ERROR(ReadFixed(json, "index_topk_freq", 1, Presence::kOptional));
  for (const std::string_view key : {"indexer_types", "index_topk_pattern"}) {
    if (!json.Has(key)) {
      continue;
    }
    DSA_ASSIGN_OR_RETURN(const Json* value, json.ReadAny(key));
    const bool every_layer_full =
        value->is_string()
            ? value->get<std::string>().find_first_not_of('F') == std::string::npos
            : value->is_array() && std::all_of(value->begin(), value->end(), [](const Json& item) {
                return item == "full" || item == "F";
              });
    if (!every_layer_full) {
      return json.MakeError(
          key, fmt::format("{} is not supported, only an indexer in every layer", Brief(*value)));
    }
  }
  return {};
}

Status ReadIndexer(JsonObject& json, ModelConfig& config) {
  if (config.architecture == Architecture::kDeepseekV3) {
    return {};
  }
  DSA_RETURN_IF_ERROR(ReadIntegers(kIndexerDimensions, json, config));
  DSA_RETURN_IF_ERROR(ReadFixed(json, "index_head_dim", kIndexHeadWidth, Presence::kRequired));
  DSA_RETURN_IF_ERROR(RefuseSharedSelection(json));
  bool interleaved = config.architecture == Architecture::kGlmMoeDsa;
  if (json.Has("indexer_rope_interleave")) {
    DSA_ASSIGN_OR_RETURN(interleaved, json.ReadBool("indexer_rope_interleave"));
  }
  config.index_rope_layout = interleaved ? RopeLayout::kInterleaved : RopeLayout::kHalfSplit;
  return {};
}

// The leading dense layers, by number or by a list of types that must say the same.
Status ReadDenseLayers(JsonObject& json, ModelConfig& config) {
  DSA_ASSIGN_OR_RETURN(const std::int64_t leading, json.ReadInt("first_k_dense_replace", 0, 1024));
  config.dense_layers = std::min(leading, config.layers);
  if (!json.Has("mlp_layer_types")) {
    return {};
  }
  DSA_ASSIGN_OR_RETURN(const Json* types, json.ReadArray("mlp_layer_types"));
  bool agrees = static_cast<std::int64_t>(types->size()) == config.layers;
  for (std::int64_t layer = 0; agrees && layer < config.layers; ++layer) {
    const char* expected = layer < config.dense_layers ? "dense" : "sparse";
    agrees = (*types)[static_cast<std::size_t>(layer)] == expected;
  }
  if (!agrees) {
    return json.MakeError("mlp_layer_types",
                          fmt::format("{} does not match first_k_dense_replace {} of {} layers",
                                      Brief(*types), leading, config.layers));
  }
  return {};
}

Status CheckRouting(const JsonObject& json, const ModelConfig& config) {
  const std::int64_t experts = config.experts;
  const std::int64_t groups = config.expert_groups;
  // More than an index may name: refused before any of them is looked for.
  const std::int64_t matrices = 3 * experts * (config.layers - config.dense_layers);
  if (matrices > kSafetensorsTensorsMax) {
    return json.MakeError(
        "n_routed_experts",
        fmt::format("{} in {} layers make {} tensors, at most {} are allowed", experts,
                    config.layers - config.dense_layers, matrices, kSafetensorsTensorsMax));
  }
  if (experts % groups != 0) {
    return json.MakeError("n_group",
                          fmt::format("{} does not divide n_routed_experts {}", groups, experts));
  }
  if (groups > 1 && experts / groups < 2) {
    return json.MakeError(
        "n_group", fmt::format("{} leaves {} expert in a group, at least 2 are needed", groups,
                               experts / groups));
  }
  if (config.expert_groups_kept > groups) {
    return json.MakeError(
        "topk_group", fmt::format("{} is more than n_group {}", config.expert_groups_kept, groups));
  }
  const std::int64_t candidates = experts / groups * config.expert_groups_kept;
  if (config.experts_per_token > candidates) {
    return json.MakeError("num_experts_per_tok",
                          fmt::format("{} is more than the {} experts of the groups kept",
                                      config.experts_per_token, candidates));
  }
  return {};
}

Status ReadExperts(JsonObject& json, ModelConfig& config) {
  if (config.dense_layers == config.layers) {
    return {};
  }
  DSA_RETURN_IF_ERROR(ReadIntegers(kExpertDimensions, json, config));
  DSA_RETURN_IF_ERROR(CheckRouting(json, config));
  DSA_ASSIGN_OR_RETURN(config.normalize_expert_weights, json.ReadBool("norm_topk_prob"));
  DSA_ASSIGN_OR_RETURN(const double scale, json.ReadDouble("routed_scaling_factor", 1e-6, 1e6));
  config.routed_scale = static_cast<float>(scale);
  DSA_ASSIGN_OR_RETURN(const Json* shared, json.ReadAny("n_shared_experts"));
  if (!shared->is_null()) {
    DSA_ASSIGN_OR_RETURN(const std::int64_t count, json.ReadInt("n_shared_experts", 0, 64));
    config.shared_width = count * config.expert_width;
  }
  return {};
}

// "dtype", or "torch_dtype" as older files spell it.
Status ReadActivationType(JsonObject& json, ModelConfig& config) {
  const std::vector<std::string> allowed = {"bfloat16", "float32"};
  const std::string_view key = json.Has("dtype") ? "dtype" : "torch_dtype";
  DSA_ASSIGN_OR_RETURN(const std::string type, json.ReadChoice(key, allowed));
  if (json.Has("torch_dtype")) {
    DSA_ASSIGN_OR_RETURN(const std::string older, json.ReadChoice("torch_dtype", allowed));
    if (older != type) {
      return json.MakeError("torch_dtype",
                            fmt::format("\"{}\" contradicts dtype \"{}\"", older, type));
    }
  }
  config.activation_type = type == "float32" ? DataType::kF32 : DataType::kBf16;
  return {};
}

// The keys of `json` that nobody asked for, for the log.
void AppendIgnored(const JsonObject& json, std::string_view prefix, ModelConfig& config) {
  for (const std::string& key : json.UnreadKeys()) {
    if (json.Has(key) && !IsIrrelevantKey(key)) {
      config.ignored_keys.push_back(fmt::format("{}{}", prefix, OneLine(key)));
    }
  }
}

Status ReadQuantization(JsonObject& json, ModelConfig& config) {
  if (!json.Has("quantization_config")) {
    return {};
  }
  DSA_ASSIGN_OR_RETURN(JsonObject quantization, json.ReadObject("quantization_config"));
  DSA_RETURN_IF_ERROR(ReadFixed(quantization, "quant_method", "fp8", Presence::kRequired));
  DSA_RETURN_IF_ERROR(ReadFixed(quantization, "fmt", "e4m3", Presence::kOptional));
  DSA_RETURN_IF_ERROR(ReadFixed(quantization, "activation_scheme", "dynamic", Presence::kOptional));
  DSA_RETURN_IF_ERROR(ReadFixed(quantization, "weight_block_size",
                                Json::array({kWeightBlock, kWeightBlock}), Presence::kRequired));
  DSA_RETURN_IF_ERROR(ReadFixed(quantization, "scale_fmt", "ue8m0", Presence::kOptional));
  AppendIgnored(quantization, "quantization_config.", config);
  config.quantized = true;
  config.scale_format =
      quantization.Has("scale_fmt") ? ScaleFormat::kPowerOfTwo : ScaleFormat::kPlain;
  if (config.activation_type != DataType::kBf16) {
    return json.MakeError("quantization_config", "is not supported with dtype float32");
  }
  return {};
}

Status ReadEps(JsonObject& json, ModelConfig& config) {
  DSA_ASSIGN_OR_RETURN(const double eps, json.ReadDouble("rms_norm_eps", 1e-12, 0.1));
  config.norm_eps = static_cast<float>(eps);
  // GLM builds these two norms with its class's eps and not with the file's.
  config.latent_norm_eps =
      config.architecture == Architecture::kGlmMoeDsa ? 1e-6F : config.norm_eps;
  return {};
}

// One id or a list of them.
Status ReadEndIds(JsonObject& json, ModelConfig& config) {
  DSA_ASSIGN_OR_RETURN(const Json* value, json.ReadAny("eos_token_id"));
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& item : list) {
    const bool fits = item.is_number_integer() && item >= 0 && item < config.vocabulary;
    if (!fits) {
      return json.MakeError("eos_token_id", fmt::format("{} is not an id in [0, {})", Brief(item),
                                                        config.vocabulary));
    }
    config.end_ids.push_back(item.get<std::int32_t>());
  }
  if (config.end_ids.empty()) {
    return json.MakeError("eos_token_id", "the list is empty");
  }
  std::sort(config.end_ids.begin(), config.end_ids.end());
  config.end_ids.erase(std::unique(config.end_ids.begin(), config.end_ids.end()),
                       config.end_ids.end());
  return {};
}

Status ReadGraph(JsonObject& json, ModelConfig& config) {
  DSA_RETURN_IF_ERROR(ReadArchitecture(json, config));
  DSA_RETURN_IF_ERROR(ReadFixedKeys(json));
  DSA_RETURN_IF_ERROR(ReadIntegers(kDimensions, json, config));
  DSA_RETURN_IF_ERROR(ReadAttention(json, config));
  DSA_RETURN_IF_ERROR(ReadIndexer(json, config));
  DSA_RETURN_IF_ERROR(ReadDenseLayers(json, config));
  DSA_RETURN_IF_ERROR(ReadExperts(json, config));
  DSA_RETURN_IF_ERROR(ReadActivationType(json, config));
  DSA_RETURN_IF_ERROR(ReadQuantization(json, config));
  DSA_RETURN_IF_ERROR(ReadEps(json, config));
  DSA_RETURN_IF_ERROR(ReadRope(json, config));
  if (json.Has("tie_word_embeddings")) {
    DSA_ASSIGN_OR_RETURN(config.tied_embeddings, json.ReadBool("tie_word_embeddings"));
  }
  if (json.Has("num_nextn_predict_layers")) {
    DSA_ASSIGN_OR_RETURN(config.mtp_layers, json.ReadInt("num_nextn_predict_layers", 0, 64));
  }
  return {};
}

Status ReadSampling(JsonObject& json, ModelConfig& config) {
  SamplingDefaults& sampling = config.sampling;
  const auto read = [&json](std::string_view key, double minimum, double maximum,
                            float& field) -> Status {
    if (json.Has(key)) {
      DSA_ASSIGN_OR_RETURN(const double value, json.ReadDouble(key, minimum, maximum));
      field = static_cast<float>(value);
    }
    return {};
  };
  DSA_RETURN_IF_ERROR(read("temperature", 0.0, 2.0, sampling.temperature));
  DSA_RETURN_IF_ERROR(read("top_p", 1e-6, 1.0, sampling.top_p));
  DSA_RETURN_IF_ERROR(read("min_p", 0.0, 1.0, sampling.min_p));
  DSA_RETURN_IF_ERROR(read("repetition_penalty", 1e-6, 10.0, sampling.repetition_penalty));
  if (json.Has("top_k")) {
    DSA_ASSIGN_OR_RETURN(const std::int64_t top_k, json.ReadInt("top_k", 0, config.vocabulary));
    sampling.top_k = static_cast<std::int32_t>(top_k);
  }
  if (json.Has("do_sample")) {
    DSA_ASSIGN_OR_RETURN(const bool sample, json.ReadBool("do_sample"));
    sampling.temperature = sample ? sampling.temperature : 0.0F;
  }
  return {};
}

// generation_config.json: its end ids replace those of config.json.
Result<bool> ReadGeneration(std::string_view text, const std::string& source, ModelConfig& config) {
  DSA_ASSIGN_OR_RETURN(const Json document, ParseJson(text, source));
  DSA_ASSIGN_OR_RETURN(JsonObject json, JsonObject::From(document, source, ""));
  DSA_RETURN_IF_ERROR(ReadSampling(json, config));
  DSA_RETURN_IF_ERROR(CheckNeutralGenerationKeys(json));
  const bool has_end_ids = json.Has("eos_token_id");
  if (has_end_ids) {
    DSA_RETURN_IF_ERROR(ReadEndIds(json, config));
  }
  AppendIgnored(json, "generation_config.", config);
  return has_end_ids;
}

// The file's text, or empty where there is none.
Result<std::string> ReadOptionalFile(const std::string& path) {
  Result<std::string> text = ReadFile(path, kConfigBytesMax);
  if (!text.ok() && text.error().code == ErrorCode::kNotFound) {
    return std::string();
  }
  if (text.ok() && text.value().empty()) {
    return InvalidArgument(fmt::format("{}: the file is empty", path));
  }
  return text;
}

}  // namespace

std::string_view ToString(Architecture architecture) {
  switch (architecture) {
    case Architecture::kDeepseekV32: return "deepseek_v32";
    case Architecture::kDeepseekV3: return "deepseek_v3";
    case Architecture::kGlmMoeDsa: return "glm_moe_dsa";
  }
  return "unknown";
}

KvFormat ModelConfig::default_kv_format() const {
  if (quantized) {
    return KvFormat::kFp8;
  }
  return activation_type == DataType::kF32 ? KvFormat::kF32 : KvFormat::kBf16;
}

Result<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_json,
                                     const std::string& folder) {
  const std::string source = folder + "/config.json";
  DSA_ASSIGN_OR_RETURN(const Json document, ParseJson(config_json, source));
  DSA_ASSIGN_OR_RETURN(JsonObject json, JsonObject::From(document, source, ""));
  ModelConfig config;
  DSA_RETURN_IF_ERROR(ReadGraph(json, config));
  bool has_end_ids = false;
  if (!generation_json.empty()) {
    DSA_ASSIGN_OR_RETURN(
        has_end_ids, ReadGeneration(generation_json, folder + "/generation_config.json", config));
  }
  if (!has_end_ids) {
    DSA_RETURN_IF_ERROR(ReadEndIds(json, config));
  }
  static_cast<void>(json.ReadAny("eos_token_id"));  // whether or not it counts
  DSA_RETURN_IF_ERROR(CheckNeutralConfigKeys(json, config));
  AppendIgnored(json, "", config);
  return config;
}

Result<ModelConfig> LoadModelConfig(const std::string& folder, GenerationFile generation) {
  DSA_ASSIGN_OR_RETURN(const std::string config_json,
                       ReadFile(folder + "/config.json", kConfigBytesMax));
  std::string generation_json;
  if (generation == GenerationFile::kRead) {
    DSA_ASSIGN_OR_RETURN(generation_json, ReadOptionalFile(folder + "/generation_config.json"));
  }
  return ParseModelConfig(config_json, generation_json, folder);
}

}  // namespace dsa
