// What is in device memory equals what the files hold: kept, converted, de-quantized and stacked as
// weights.h says.
#include "model/weight_loader.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/fused/joined.h"
#include "model/random_weights.h"
#include "tests/model/checkpoint_files.h"
#include "tests/model/stored_latent.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::At;
using testing::CheckFp8Values;
using testing::CheckLatent;
using testing::MustWrite;
using testing::ReadAll;
using testing::ReadShard;
using testing::ShardContents;
using testing::SmallOptions;
using testing::Stored;
using testing::TemporaryFolder;

bool Same(const void* memory, const std::string& bytes) {
  return std::memcmp(memory, bytes.data(), bytes.size()) == 0;
}

bool Same(const LinearWeight& loaded, const std::map<std::string, Stored>& stored,
          const std::string& name) {
  const Stored& expected = stored.at(name);
  if (loaded.weight.rows != expected.shape[0] || loaded.weight.cols != expected.shape[1] ||
      loaded.weight.row_stride != expected.shape[1] || !Same(loaded.weight.data, expected.bytes)) {
    return false;
  }
  if (!loaded.quantized()) {
    return loaded.scales.data == nullptr;
  }
  const Stored& scales = stored.at(name + "_scale_inv");
  return loaded.scales.rows == scales.shape[0] && loaded.scales.cols == scales.shape[1] &&
         loaded.scales.row_stride == scales.shape[1] && Same(loaded.scales.data, scales.bytes);
}

bool Same(const Vector<const float>& loaded, const Stored& expected) {
  bool same = loaded.size == expected.shape[0];
  for (std::int64_t i = 0; same && i < loaded.size; ++i) {
    same = loaded.data[i] == expected.At(static_cast<std::size_t>(i));
  }
  return same;
}

// One expert of a stack.
bool Same(const StackedWeight& stack, std::int64_t expert,
          const std::map<std::string, Stored>& stored, const std::string& name) {
  const Stored& expected = stored.at(name);
  const auto* values =
      static_cast<const char*>(stack.data) + expert * stack.rows * stack.cols * SizeOf(stack.type);
  bool same = stack.rows == expected.shape[0] && stack.cols == expected.shape[1] &&
              Same(values, expected.bytes);
  if (stack.scales != nullptr) {
    const Stored& scales = stored.at(name + "_scale_inv");
    same = same && Same(stack.scales + expert * scales.shape[0] * scales.shape[1], scales.bytes);
  }
  return same;
}

DeviceWeights MustLoad(const Checkpoint& checkpoint, Backend& backend) {
  NoProgress progress;
  auto loaded = LoadWeights(checkpoint, backend, progress);
  INFO((loaded.ok() ? "" : loaded.error().message));
  REQUIRE(loaded.ok());
  return std::move(loaded).value();
}

void CheckMlp(const MlpWeights& mlp, const std::map<std::string, Stored>& stored,
              const std::string& prefix) {
  CHECK(Same(mlp.gate, stored, prefix + "gate_proj.weight"));
  CHECK(Same(mlp.up, stored, prefix + "up_proj.weight"));
  CHECK(Same(mlp.down, stored, prefix + "down_proj.weight"));
}

void CheckMoe(const MoeWeights& moe, const ModelConfig& config,
              const std::map<std::string, Stored>& stored, const std::string& prefix) {
  CHECK(Same(moe.gate.data, stored.at(prefix + "gate.weight").bytes));
  CHECK(Same(moe.gate_bias, stored.at(prefix + "gate.e_score_correction_bias")));
  CHECK(moe.expert_gate.experts == config.experts);
  for (std::int64_t expert = 0; expert < config.experts; ++expert) {
    const std::string name = prefix + "experts." + std::to_string(expert) + ".";
    CHECK(Same(moe.expert_gate, expert, stored, name + "gate_proj.weight"));
    CHECK(Same(moe.expert_up, expert, stored, name + "up_proj.weight"));
    CHECK(Same(moe.expert_down, expert, stored, name + "down_proj.weight"));
  }
  REQUIRE(moe.shared.has_value() == (config.shared_width > 0));
  if (moe.shared) {
    CheckMlp(*moe.shared, stored, prefix + "shared_experts.");
  }
}

void CheckLayer(const LayerWeights& layer, const ModelConfig& config,
                const std::map<std::string, Stored>& stored, const std::string& prefix) {
  CHECK(Same(layer.attention_norm, stored.at(prefix + "input_layernorm.weight")));
  CHECK(Same(layer.ffn_norm, stored.at(prefix + "post_attention_layernorm.weight")));
  const std::string attention = prefix + "self_attn.";
  if (config.q_latent > 0) {
    CHECK(Same(layer.attention.q_a, stored, attention + "q_a_proj.weight"));
    CHECK(Same(layer.attention.q_a_norm, stored.at(attention + "q_a_layernorm.weight")));
    CHECK(Same(layer.attention.q_b, stored, attention + "q_b_proj.weight"));
  } else {
    CHECK(layer.attention.q_a.weight.data == nullptr);
    CHECK(Same(layer.attention.q_b, stored, attention + "q_proj.weight"));
  }
  CHECK(Same(layer.attention.kv_a, stored, attention + "kv_a_proj_with_mqa.weight"));
  CHECK(Same(layer.attention.kv_a_norm, stored.at(attention + "kv_a_layernorm.weight")));
  CHECK(Same(layer.attention.o, stored, attention + "o_proj.weight"));
  CheckLatent(layer.attention, config, stored, attention + "kv_b_proj.weight");
  CheckFp8Values(layer.attention, config, stored, attention + "kv_b_proj.weight");
  REQUIRE(layer.indexer.has_value() == config.has_indexer());
  if (layer.indexer) {
    const std::string indexer = attention + "indexer.";
    CHECK(Same(layer.indexer->wq_b, stored, indexer + "wq_b.weight"));
    CHECK(Same(layer.indexer->wk, stored, indexer + "wk.weight"));
    CHECK(Same(layer.indexer->k_norm_weight, stored.at(indexer + "k_norm.weight")));
    CHECK(Same(layer.indexer->k_norm_bias, stored.at(indexer + "k_norm.bias")));
    CHECK(Same(layer.indexer->weights_proj.data, stored.at(indexer + "weights_proj.weight").bytes));
  }
  CHECK(layer.dense.has_value() != layer.moe.has_value());
  if (layer.dense) {
    CheckMlp(*layer.dense, stored, prefix + "mlp.");
  } else {
    CheckMoe(*layer.moe, config, stored, prefix + "mlp.");
  }
}

// Makes a tensor of scales powers of two of which no two neighbours are alike.
void VaryScales(const std::string& path, const std::string& name) {
  ShardContents shard = ReadShard(path);
  const std::size_t begin = shard.header[name]["data_offsets"][0];
  const std::size_t end = shard.header[name]["data_offsets"][1];
  for (std::size_t i = 0; i < (end - begin) / 4; ++i) {
    const float scale = std::ldexp(1.0F, -static_cast<int>((i * 5 + i / 4) % 11));
    std::memcpy(shard.data.data() + begin + i * 4, &scale, 4);
  }
  testing::WriteShard(path, shard);
}

}  // namespace

TEST_CASE("Every loaded value equals the file's", "[model][weights]") {
  const auto type = GENERATE(CheckpointType::kFp8, CheckpointType::kBf16, CheckpointType::kF32);
  const auto architecture =
      GENERATE(Architecture::kDeepseekV32, Architecture::kDeepseekV3, Architecture::kGlmMoeDsa);
  RandomCheckpointOptions options = SmallOptions();
  options.type = type;
  options.architecture = architecture;
  options.scale_format =
      architecture == Architecture::kDeepseekV3 ? ScaleFormat::kPlain : ScaleFormat::kPowerOfTwo;
  options.shards = 3;  // scales stand in another shard than their weights
  options.mtp_layers = 1;
  options.shared_experts = architecture == Architecture::kGlmMoeDsa ? 2 : 1;
  if (architecture != Architecture::kDeepseekV32) {  // kv_b has more than one block either way
    options.nope = 192;
    options.value = 256;
  }
  options.q_latent = architecture == Architecture::kDeepseekV3 ? 0 : 48;
  const TemporaryFolder folder;
  MustWrite(options, folder.path());
  const auto stored = ReadAll(folder);
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  CpuBackend backend(1);
  const DeviceWeights device = MustLoad(checkpoint, backend);
  const ModelWeights& weights = device.weights;
  CHECK(weights.embedding.rows == options.vocabulary);
  CHECK(Same(weights.embedding.data, stored.at("model.embed_tokens.weight").bytes));
  CHECK(Same(weights.head.data, stored.at("lm_head.weight").bytes));
  CHECK(Same(weights.final_norm, stored.at("model.norm.weight")));
  REQUIRE(weights.layers.size() == 2);  // the MTP layer is left aside
  CHECK(weights.layers[0].dense.has_value());
  CHECK(weights.layers[1].moe.has_value());
  for (std::size_t layer = 0; layer < weights.layers.size(); ++layer) {
    CheckLayer(weights.layers[layer], checkpoint.config(), stored,
               "model.layers." + std::to_string(layer) + ".");
  }
}

namespace {

// V3.2's own widths where they matter: whole blocks of 128 but for kv_a.
RandomCheckpointOptions BlockOptions() {
  RandomCheckpointOptions options = SmallOptions();
  options.hidden = 384;  // three scales per block of rows
  options.nope = 64;     // q_b has 2 * 128 rows
  options.q_latent = 256;
  options.dense_width = 256;
  options.expert_width = 128;
  return options;
}

void CheckOneBehindTheOther(const std::vector<const LinearWeight*>& weights) {
  LinearWeight whole = *weights.front();
  std::int64_t rows = whole.weight.rows;
  for (std::size_t i = 1; i < weights.size(); ++i) {
    const auto joined = Joined(whole, *weights[i]);
    REQUIRE(joined.has_value());
    whole = *joined;
    rows += weights[i]->weight.rows;
  }
  CHECK(whole.weight.rows == rows);
}

}  // namespace

TEST_CASE("Weights of one input lie one behind the other", "[model][weights]") {
  RandomCheckpointOptions options = BlockOptions();
  options.type = GENERATE(CheckpointType::kFp8, CheckpointType::kBf16);
  const TemporaryFolder folder;
  MustWrite(options, folder.path());
  CpuBackend backend(1);
  const DeviceWeights device = MustLoad(Checkpoint::Open(folder.path()).value(), backend);
  for (const LayerWeights& layer : device.weights.layers) {
    CheckOneBehindTheOther({&layer.attention.q_a, &layer.indexer->wk, &layer.attention.kv_a});
    CheckOneBehindTheOther({&layer.attention.q_b, &layer.indexer->wq_b});
    const MlpWeights& mlp = layer.dense ? *layer.dense : *layer.moe->shared;
    CheckOneBehindTheOther({&mlp.gate, &mlp.up});
  }
}

TEST_CASE("Weights that end inside a block of scales are not joined", "[model][weights]") {
  RandomCheckpointOptions options = BlockOptions();
  options.q_latent = 192;  // a block and a half
  const TemporaryFolder folder;
  MustWrite(options, folder.path());
  CpuBackend backend(1);
  const DeviceWeights device = MustLoad(Checkpoint::Open(folder.path()).value(), backend);
  const LayerWeights& layer = device.weights.layers.front();
  CHECK_FALSE(Joined(layer.attention.q_a, layer.indexer->wk));
  CHECK(Joined(layer.indexer->wk, layer.attention.kv_a));
}

TEST_CASE("Tied embeddings are one tensor", "[model][weights]") {
  RandomCheckpointOptions options = SmallOptions();
  options.tied_embeddings = true;
  const TemporaryFolder folder;
  MustWrite(options, folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  CpuBackend backend(1);
  const DeviceWeights device = MustLoad(checkpoint, backend);
  CHECK(device.weights.head.data == device.weights.embedding.data);
  CHECK(device.weights.head.rows == options.vocabulary);
}

TEST_CASE("The memory of the weights is known before they are loaded", "[model][weights]") {
  const TemporaryFolder folder;
  MustWrite(SmallOptions(), folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  CpuBackend backend(1);
  const DeviceWeights device = MustLoad(checkpoint, backend);
  std::size_t bytes = 0;
  for (const DeviceBuffer& buffer : device.buffers) {
    bytes += buffer.bytes();
  }
  CHECK(bytes ==
        static_cast<std::size_t>(WeightBytes(checkpoint, WholeModel(checkpoint.config()))));
}

namespace {

// Collects the calls, and does something in the middle of the loading.
class Recorder final : public LoadProgress {
 public:
  void OnBytes(std::int64_t bytes, std::int64_t bytes_total) override {
    CHECK(bytes > done);
    CHECK(bytes <= bytes_total);
    done = bytes;
    total = bytes_total;
    if (on_first) {
      std::exchange(on_first, nullptr)();
    }
  }
  std::int64_t done = 0;
  std::int64_t total = 0;
  std::function<void()> on_first;
};

}  // namespace

TEST_CASE("Random weights need a configuration alone, and only the seed makes them",
          "[model][weights]") {
  RandomCheckpointOptions options = SmallOptions();
  options.type = GENERATE(CheckpointType::kFp8, CheckpointType::kBf16, CheckpointType::kF32);
  const TemporaryFolder folder;
  MustWrite(options, folder.path());
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    if (entry.path().extension() == ".safetensors") {
      std::filesystem::resize_file(entry.path(), 0);  // nobody reads it
    }
  }
  const ModelConfig config = LoadModelConfig(folder.path()).value();
  CpuBackend one(1);
  CpuBackend two(2);
  const DeviceWeights a = MakeRandomWeights(config, 5, one).value();
  const DeviceWeights b = MakeRandomWeights(config, 5, two).value();
  const DeviceWeights other = MakeRandomWeights(config, 6, one).value();
  std::int64_t bytes = 0;
  for (const DeviceBuffer& buffer : a.buffers) {
    bytes += static_cast<std::int64_t>(buffer.bytes());
  }
  CHECK(bytes == RandomWeightBytes(config, WholeModel(config)));
  const auto same = [&](const LinearWeight& x, const LinearWeight& y) {
    const auto size =
        static_cast<std::size_t>(x.weight.rows * x.weight.cols * SizeOf(x.weight.type));
    return std::memcmp(x.weight.data, y.weight.data, size) == 0;
  };
  const AttentionWeights& attention = a.weights.layers[1].attention;
  CHECK(attention.o.quantized() == (options.type == CheckpointType::kFp8));
  CHECK(same(attention.o, b.weights.layers[1].attention.o));
  CHECK_FALSE(same(attention.o, other.weights.layers[1].attention.o));
  CHECK_FALSE(same(a.weights.layers[0].attention.o, attention.o));
  // w_uk and w_uv have a deviation of 512^-1/2, norms lie around 1, scales are one power of two.
  double squares = 0;
  const std::int64_t rows = config.nope * config.heads;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < kLatentWidth; ++col) {
      const double value = At(attention.w_uk, row / config.nope, row % config.nope, col);
      squares += value * value;
    }
  }
  CHECK(std::sqrt(squares / static_cast<double>(rows)) == Approx(1.0).epsilon(0.02));
  CHECK(a.weights.final_norm.data[3] == Approx(1.0).margin(0.5));
  if (attention.o.quantized()) {
    CHECK(std::exp2(std::round(std::log2(attention.o.scales.data[0]))) ==
          attention.o.scales.data[0]);
  }
}

TEST_CASE("kv_b of more heads than one piece holds is split right", "[model][weights]") {
  RandomCheckpointOptions options = SmallOptions();
  options.heads = 70;  // f32: 32 heads of 256 rows are 16 MiB
  // Of the first three W_UV is kept as fp8 too.
  std::tie(options.type, options.nope, options.value, options.scale_format) =
      GENERATE(std::tuple(CheckpointType::kFp8, 128, 128, ScaleFormat::kPowerOfTwo),
               std::tuple(CheckpointType::kFp8, 128, 256, ScaleFormat::kPowerOfTwo),
               std::tuple(CheckpointType::kFp8, 256, 128, ScaleFormat::kPowerOfTwo),
               std::tuple(CheckpointType::kFp8, 128, 128, ScaleFormat::kPlain),
               std::tuple(CheckpointType::kFp8, 24, 40, ScaleFormat::kPowerOfTwo),
               std::tuple(CheckpointType::kF32, 128, 128, ScaleFormat::kPowerOfTwo));
  CAPTURE(options.nope, options.value, static_cast<int>(options.scale_format));
  const TemporaryFolder folder;
  options.shards = 1;
  MustWrite(options, folder.path());
  if (options.type == CheckpointType::kFp8) {
    VaryScales(folder / "model-00001-of-00001.safetensors",
               "model.layers.0.self_attn.kv_b_proj.weight_scale_inv");
  }
  const auto stored = ReadAll(folder);
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  CpuBackend backend(1);
  const DeviceWeights device = MustLoad(checkpoint, backend);
  CheckLatent(device.weights.layers[0].attention, checkpoint.config(), stored,
              "model.layers.0.self_attn.kv_b_proj.weight");
  CheckFp8Values(device.weights.layers[0].attention, checkpoint.config(), stored,
                 "model.layers.0.self_attn.kv_b_proj.weight");
}

TEST_CASE("ranks get the fp8 values of their heads", "[model][weights]") {
  RandomCheckpointOptions options = SmallOptions();
  options.heads = 64;  // a piece has 42
  options.nope = 128;
  options.value = 128;
  options.expert_width = 256;
  options.dense_width = 384;
  const TemporaryFolder folder;
  MustWrite(options, folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  CpuBackend backend(1);
  const DeviceWeights whole = MustLoad(checkpoint, backend);
  Backend* const backends[] = {&backend, &backend};
  NoProgress progress;
  const auto ranks = LoadRankWeights(checkpoint, {.ranks = 2}, backends, progress);
  REQUIRE(ranks.ok());
  const AttentionWeights& all = whole.weights.layers[1].attention;
  const auto same = [](const ScaledHeads& part, const ScaledHeads& of, std::int64_t first) {
    const std::int64_t size = part.values.rows * part.values.row_stride;
    return part.values.rows == 32 && part.scales.rows == 32 &&
           std::memcmp(part.values.data,
                       static_cast<const Fp8E4m3*>(of.values.data) + first * of.values.row_stride,
                       static_cast<std::size_t>(size)) == 0 &&
           std::equal(part.scales.data, part.scales.data + part.scales.rows * part.scales.cols,
                      of.scales.Row(first));
  };
  for (std::int64_t rank = 0; rank < 2; ++rank) {
    CAPTURE(rank);
    const AttentionWeights& part =
        ranks.value()[static_cast<std::size_t>(rank)].weights.layers[1].attention;
    CHECK(same(part.w_uv_fp8, all.w_uv_fp8, 32 * rank));
  }
}

TEST_CASE("Progress grows to the total", "[model][weights]") {
  const TemporaryFolder folder;
  MustWrite(SmallOptions(), folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  CpuBackend backend(1);
  Recorder recorder;
  REQUIRE(LoadWeights(checkpoint, backend, recorder).ok());
  CHECK(recorder.done > 0);
  CHECK(recorder.done == recorder.total);
}

TEST_CASE("A file that changes while it is loaded is noticed", "[model][weights]") {
  const TemporaryFolder folder;
  MustWrite(SmallOptions(), folder.path());
  const std::string path = folder / "model-00002-of-00002.safetensors";
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  CpuBackend backend(1);
  Recorder recorder;
  const bool shrinks = GENERATE(false, true);
  recorder.on_first = [&] {
    if (shrinks) {
      std::filesystem::resize_file(path, 100);
    } else {
      std::ofstream(path, std::ios::app) << "x";
    }
  };
  const auto loaded = LoadWeights(checkpoint, backend, recorder);
  REQUIRE_FALSE(loaded.ok());
  CHECK(loaded.error().message.find(path) == 0);
  CHECK(testing::IsOneLine(loaded.error().message));
}

TEST_CASE("A scale that is not finite and positive is refused", "[model][weights]") {
  const float bad = GENERATE(std::nanf(""), INFINITY, -INFINITY, 0.0F, -0.0F, -1.0F);
  const std::string name =
      GENERATE(as<std::string>(), "model.layers.1.self_attn.o_proj.weight_scale_inv",
               "model.layers.0.self_attn.kv_b_proj.weight_scale_inv",
               "model.layers.1.mlp.experts.3.down_proj.weight_scale_inv");
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  options.shards = 1;
  MustWrite(options, folder.path());
  const std::string path = folder / "model-00001-of-00001.safetensors";
  ShardContents shard = ReadShard(path);
  const std::size_t end = shard.header[name]["data_offsets"][1];
  std::memcpy(shard.data.data() + end - 4, &bad, 4);  // the tensor's last scale
  testing::WriteShard(path, shard);
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  CpuBackend backend(1);
  NoProgress progress;
  const auto loaded = LoadWeights(checkpoint, backend, progress);
  REQUIRE_FALSE(loaded.ok());
  INFO(loaded.error().message);
  CHECK(loaded.error().code == ErrorCode::kInvalidArgument);
  CHECK(loaded.error().message.find(path + ": tensor " + name) == 0);
  CHECK(loaded.error().message.find("not finite and positive") != std::string::npos);
}

}  // namespace dsa
