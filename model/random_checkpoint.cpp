#include "model/random_checkpoint.h"

#include "common/json.h"
#include "common/prng.h"
#include "kernels/ops/fill_random.h"
#include "model/checkpoint_files.h"
#include "model/file_writer.h"
#include "model/random_tokenizer.h"
#include "model/random_weights.h"
#include "model/safetensors.h"
#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/core.h>

namespace dsa {
namespace {

std::string_view ArchitectureClass(Architecture architecture) {
  switch (architecture) {
    case Architecture::kDeepseekV32: return "DeepseekV32ForCausalLM";
    case Architecture::kDeepseekV3: return "DeepseekV3ForCausalLM";
    case Architecture::kGlmMoeDsa: return "GlmMoeDsaForCausalLM";
  }
  return "";
}

void AddRope(const RandomCheckpointOptions& options, Json& config) {
  if (options.architecture == Architecture::kGlmMoeDsa) {
    config["rms_norm_eps"] = 1e-5;
    config["rope_theta"] = 1'000'000.0;
    config["rope_scaling"] = nullptr;
    config["indexer_rope_interleave"] = true;
    return;
  }
  config["rms_norm_eps"] = 1e-6;
  config["rope_theta"] = 10'000.0;
  config["rope_scaling"] = {
      {"type", "yarn"},       {"factor", 40},   {"original_max_position_embeddings", 4096},
      {"beta_fast", 32},      {"beta_slow", 1}, {"mscale", 1.0},
      {"mscale_all_dim", 1.0}};
}

Json MakeConfig(const RandomCheckpointOptions& options) {
  Json config = {{"architectures", {ArchitectureClass(options.architecture)}},
                 {"model_type", ToString(options.architecture)},
                 {"vocab_size", options.vocabulary},
                 {"hidden_size", options.hidden},
                 {"intermediate_size", options.dense_width},
                 {"moe_intermediate_size", options.expert_width},
                 {"num_hidden_layers", options.layers},
                 {"first_k_dense_replace", options.dense_layers},
                 {"moe_layer_freq", 1},
                 {"num_attention_heads", options.heads},
                 {"num_key_value_heads", options.heads},
                 {"q_lora_rank", options.q_latent},
                 {"kv_lora_rank", kLatentWidth},
                 {"qk_nope_head_dim", options.nope},
                 {"qk_rope_head_dim", kRopeWidth},
                 {"v_head_dim", options.value},
                 {"n_routed_experts", options.experts},
                 {"n_shared_experts", options.shared_experts},
                 {"num_experts_per_tok", options.experts_per_token},
                 {"n_group", options.expert_groups},
                 {"topk_group", options.expert_groups_kept},
                 {"topk_method", "noaux_tc"},
                 {"scoring_func", "sigmoid"},
                 {"norm_topk_prob", options.normalize_expert_weights},
                 {"routed_scaling_factor", 2.5},
                 {"max_position_embeddings", options.context_max},
                 {"hidden_act", "silu"},
                 {"attention_bias", false},
                 {"tie_word_embeddings", options.tied_embeddings},
                 {"bos_token_id", 0},
                 {"eos_token_id", 1},
                 {"num_nextn_predict_layers", options.mtp_layers},
                 {"torch_dtype", options.type == CheckpointType::kF32 ? "float32" : "bfloat16"}};
  if (options.q_latent == 0) {
    config["q_lora_rank"] = nullptr;
  }
  if (options.architecture != Architecture::kDeepseekV3) {
    config["index_n_heads"] = options.index_heads;
    config["index_head_dim"] = kIndexHeadWidth;
    config["index_topk"] = options.index_topk;
  }
  AddRope(options, config);
  if (options.type == CheckpointType::kFp8) {
    config["quantization_config"] = {{"quant_method", "fp8"},
                                     {"fmt", "e4m3"},
                                     {"weight_block_size", {kWeightBlock, kWeightBlock}},
                                     {"activation_scheme", "dynamic"}};
    if (options.scale_format == ScaleFormat::kPowerOfTwo) {
      config["quantization_config"]["scale_fmt"] = "ue8m0";
    }
  }
  return config;
}

// A tensor to be written.
struct RandomTensor {
  std::string name;
  std::int64_t rows;
  std::int64_t cols;  // 0: a vector
  bool quantizable;
};

// What the model needs, and the MTP layers that it leaves aside.
std::vector<RandomTensor> ListTensors(const ModelConfig& config) {
  std::vector<RandomTensor> tensors;
  ModelConfig with_mtp = config;
  with_mtp.layers += config.mtp_layers;
  ModelWeights weights;
  ForEachTensor(with_mtp, weights, [&tensors](const TensorSpec& spec) {
    tensors.push_back({spec.name, spec.rows, spec.cols, spec.quantizable()});
  });
  for (std::int64_t layer = config.layers; layer < with_mtp.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    for (const char* norm : {"enorm", "hnorm", "shared_head.norm"}) {
      tensors.push_back({prefix + norm + ".weight", config.hidden, 0, false});
    }
    tensors.push_back({prefix + "eh_proj.weight", config.hidden, 2 * config.hidden, false});
  }
  return tensors;
}

// Nearly normal: the sum of four uniform numbers, which is exact and so the same on every machine.
std::vector<float> RandomValues(const RandomTensor& tensor, const RandomMoments& moments,
                                std::uint64_t seed) {
  const std::int64_t count = tensor.rows * std::max<std::int64_t>(tensor.cols, 1);
  const double scale = moments.deviation * std::sqrt(3.0) / 65536.0;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    values[static_cast<std::size_t>(i)] =
        static_cast<float>(moments.mean + static_cast<double>(RandomSum(seed, i)) * scale);
  }
  return values;
}

template <typename T>
void AppendBytes(std::string& bytes, const T& value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

// One file's tensors as they are collected.
struct Shard {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;

  void Add(const std::string& name, DataType type, const std::vector<std::int64_t>& shape,
           const std::string& bytes) {
    header[name] = {{"dtype", SafetensorsName(type)},
                    {"shape", shape},
                    {"data_offsets", {data.size(), data.size() + bytes.size()}}};
    data += bytes;
  }
};

struct Quantized {
  std::string values;
  std::string scales;
  std::vector<std::int64_t> scale_shape;
};

// e4m3 with one scale per 128 x 128 block.
Quantized QuantizeBlocks(const RandomTensor& tensor, const std::vector<float>& values,
                         ScaleFormat format) {
  const auto at = [&](std::int64_t row, std::int64_t col) {
    return values[static_cast<std::size_t>(row * tensor.cols + col)];
  };
  const std::int64_t block_rows = (tensor.rows + kWeightBlock - 1) / kWeightBlock;
  const std::int64_t block_cols = (tensor.cols + kWeightBlock - 1) / kWeightBlock;
  Quantized result{.values = std::string(values.size(), '\0'),
                   .scales = {},
                   .scale_shape = {block_rows, block_cols}};
  for (std::int64_t block = 0; block < block_rows * block_cols; ++block) {
    const std::int64_t row_begin = block / block_cols * kWeightBlock;
    const std::int64_t col_begin = block % block_cols * kWeightBlock;
    const std::int64_t row_end = std::min(row_begin + kWeightBlock, tensor.rows);
    const std::int64_t col_end = std::min(col_begin + kWeightBlock, tensor.cols);
    float largest = 0.0F;
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      for (std::int64_t col = col_begin; col < col_end; ++col) {
        largest = std::max(largest, std::fabs(at(row, col)));
      }
    }
    const float scale = Fp8BlockScale(largest, format);
    AppendBytes(result.scales, scale);
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      for (std::int64_t col = col_begin; col < col_end; ++col) {
        result.values[static_cast<std::size_t>(row * tensor.cols + col)] =
            static_cast<char>(ToFp8E4m3(at(row, col) / scale).bits);
      }
    }
  }
  return result;
}

// Spreads the tensors over the shards in turn; a scale goes into the shard after its weight's, as
// in real checkpoints it may.
std::vector<Shard> FillShards(const ModelConfig& config, const RandomCheckpointOptions& options) {
  std::vector<Shard> shards(static_cast<std::size_t>(options.shards));
  std::size_t index = 0;
  for (const RandomTensor& tensor : ListTensors(config)) {
    RandomMoments moments = MomentsOf(tensor.name, tensor.cols);
    if (tensor.name.ends_with("e_score_correction_bias")) {
      moments.mean = options.gate_bias_mean;
    }
    const std::vector<float> values =
        RandomValues(tensor, moments, SplitMix64(options.seed * 0x10001U + index));
    Shard& shard = shards[index % shards.size()];
    Shard& next_shard = shards[(index + 1) % shards.size()];
    ++index;
    std::vector<std::int64_t> shape = {tensor.rows};
    if (tensor.cols > 0) {
      shape.push_back(tensor.cols);
    }
    if (options.type == CheckpointType::kFp8 && tensor.quantizable) {
      const Quantized quantized = QuantizeBlocks(tensor, values, options.scale_format);
      shard.Add(tensor.name, DataType::kFp8E4m3, shape, quantized.values);
      next_shard.Add(tensor.name + "_scale_inv", DataType::kF32, quantized.scale_shape,
                     quantized.scales);
      continue;
    }
    const bool wide =
        options.type == CheckpointType::kF32 || tensor.name.ends_with("e_score_correction_bias");
    std::string bytes;
    for (const float value : values) {
      wide ? AppendBytes(bytes, value) : AppendBytes(bytes, ToBf16(value));
    }
    shard.Add(tensor.name, wide ? DataType::kF32 : DataType::kBf16, shape, bytes);
  }
  return shards;
}

Status WriteShards(const std::vector<Shard>& shards, const std::string& folder) {
  Json weight_map = Json::object();
  std::size_t total_bytes = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    for (const auto& [tensor, entry] : shards[i].header.items()) {
      if (tensor != "__metadata__") {
        weight_map[tensor] = name;
      }
    }
    std::string header = shards[i].header.dump();
    header.resize((header.size() + 7) / 8 * 8, ' ');  // aligns the data
    std::string text;
    AppendBytes(text, static_cast<std::uint64_t>(header.size()));
    DSA_RETURN_IF_ERROR(
        WriteFile(fmt::format("{}/{}", folder, name), {text, header, shards[i].data}));
    total_bytes += shards[i].data.size();
  }
  const Json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}};
  return WriteFile(fmt::format("{}/{}", folder, kIndexFile), {index.dump(1) + "\n"});
}

Status CheckOptions(const RandomCheckpointOptions& options) {
  if (options.shards < 1 || options.shards > 1000) {
    return InvalidArgument(fmt::format("shards: {} is not in [1, 1000]", options.shards));
  }
  if (options.q_latent < 0) {
    return InvalidArgument(fmt::format("q_lora_rank: {} is negative", options.q_latent));
  }
  return {};
}

// A folder of ours that is written again keeps no shard of the time before.
Status PrepareFolder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    return InvalidArgument(fmt::format("{}: {}", folder, error.message()));
  }
  std::filesystem::directory_iterator entry(folder, error);
  std::vector<std::filesystem::path> old;
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (entry->path().extension() == ".safetensors") {
      old.push_back(entry->path());
    }
  }
  for (const std::filesystem::path& path : old) {
    std::filesystem::remove(path, error);
  }
  if (error) {
    return InvalidArgument(fmt::format("{}: {}", folder, error.message()));
  }
  return {};
}

}  // namespace

Status WriteRandomCheckpoint(const RandomCheckpointOptions& options, const std::string& folder) {
  DSA_RETURN_IF_ERROR(CheckOptions(options));
  const std::string config_text = MakeConfig(options).dump(1) + "\n";
  const Json generation = {{"bos_token_id", 0},
                           {"eos_token_id", 1},
                           {"do_sample", true},
                           {"temperature", 1.0},
                           {"top_p", 0.95}};
  const std::string generation_text = generation.dump(1) + "\n";
  // The reader is the one judge of what is a valid configuration.
  DSA_ASSIGN_OR_RETURN(const ModelConfig config,
                       ParseModelConfig(config_text, generation_text, folder));
  DSA_RETURN_IF_ERROR(PrepareFolder(folder));
  DSA_RETURN_IF_ERROR(WriteFile(folder + "/config.json", {config_text}));
  DSA_RETURN_IF_ERROR(WriteFile(folder + "/generation_config.json", {generation_text}));
  DSA_RETURN_IF_ERROR(WriteShards(FillShards(config, options), folder));
  return WriteRandomTokenizer(options.vocabulary, folder);
}

}  // namespace dsa
