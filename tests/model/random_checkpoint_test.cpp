// The random checkpoint is reproducible, valid, and of the magnitudes that keep routing stable.
#include "model/random_checkpoint.h"

#include "model/checkpoint.h"
#include "tests/model/checkpoint_files.h"
#include "tokenizer/tokenizer.h"

#include <cmath>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::MustWrite;
using testing::ReadBytes;
using testing::SmallOptions;
using testing::TemporaryFolder;

std::vector<std::string> FileNames(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

TEST_CASE("The same options write the same bytes, another seed others", "[model][random]") {
  const TemporaryFolder first;
  const TemporaryFolder second;
  const TemporaryFolder third;
  RandomCheckpointOptions options = SmallOptions();
  options.vocabulary = 512;
  MustWrite(options, first.path());
  MustWrite(options, second.path());
  options.seed = 1;
  MustWrite(options, third.path());
  const auto names = FileNames(first.path());
  REQUIRE(names == std::vector<std::string>{
                       "config.json", "generation_config.json", "model-00001-of-00002.safetensors",
                       "model-00002-of-00002.safetensors", "model.safetensors.index.json",
                       "tokenizer.json", "tokenizer_config.json"});
  for (const std::string& name : names) {
    CHECK(ReadBytes(first / name) == ReadBytes(second / name));
    const bool weights = name.ends_with(".safetensors");
    CHECK((ReadBytes(first / name) == ReadBytes(third / name)) != weights);
  }
}

TEST_CASE("A folder that is written again keeps nothing of before", "[model][random]") {
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  options.shards = 5;
  MustWrite(options, folder.path());
  options.shards = 2;
  MustWrite(options, folder.path());
  CHECK(Checkpoint::Open(folder.path()).ok());
}

TEST_CASE("The default checkpoint is small and is DeepSeek-V3.2's format", "[model][random]") {
  const TemporaryFolder folder;
  MustWrite({}, folder / "made/here");
  std::int64_t bytes = 0;
  for (const std::string& name : FileNames(folder / "made/here")) {
    bytes += static_cast<std::int64_t>(std::filesystem::file_size(folder / ("made/here/" + name)));
  }
  CHECK(bytes < 12'000'000);
  const Checkpoint checkpoint = Checkpoint::Open(folder / "made/here").value();
  const ModelConfig& config = checkpoint.config();
  CHECK(config.architecture == Architecture::kDeepseekV32);
  CHECK(config.default_kv_format() == KvFormat::kFp8);
  CHECK(config.scale_format == ScaleFormat::kPowerOfTwo);
  CHECK(config.index_topk == 64);
  CHECK(config.ignored_keys.empty());
  // Weights and scales stand in different shards.
  const auto weight = checkpoint.At("model.layers.0.self_attn.o_proj.weight");
  const auto scale = checkpoint.At("model.layers.0.self_attn.o_proj.weight_scale_inv");
  CHECK(weight.shard != scale.shard);
}

TEST_CASE("Values are centred and have the deviation of their tensor", "[model][random]") {
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  options.type = CheckpointType::kF32;
  options.shards = 1;
  MustWrite(options, folder.path());
  const auto shard = testing::ReadShard(folder / "model-00001-of-00001.safetensors");
  const auto check = [&](const std::string& name, double mean, double deviation) {
    const std::string bytes = shard.Tensor(name);
    std::vector<float> values(bytes.size() / 4);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    double sum = 0;
    double squares = 0;
    for (const float value : values) {
      sum += value;
      squares += static_cast<double>(value - mean) * (value - mean);
    }
    const auto count = static_cast<double>(values.size());
    CAPTURE(name);
    CHECK(std::fabs(sum / count - mean) < 5 * deviation / std::sqrt(count));
    // The deviation of a sample deviation is below deviation / sqrt(2 n).
    CHECK(std::sqrt(squares / count) == Approx(deviation).epsilon(5 / std::sqrt(2 * count)));
  };
  check("model.embed_tokens.weight", 0, 1);
  check("lm_head.weight", 0, 4 / std::sqrt(136.0));
  check("model.layers.0.self_attn.q_a_proj.weight", 0, 1 / std::sqrt(136.0));
  check("model.layers.0.self_attn.o_proj.weight", 0, 0.1 / std::sqrt(80.0));
  check("model.layers.1.mlp.experts.2.down_proj.weight", 0, 0.1 / std::sqrt(32.0));
  check("model.layers.1.mlp.gate.weight", 0, 2 / std::sqrt(136.0));
  check("model.norm.weight", 1, 0.1);
  check("model.layers.0.self_attn.indexer.k_norm.weight", 1, 0.1);
  check("model.layers.0.self_attn.indexer.k_norm.bias", 0, 0.1);
}

TEST_CASE("fp8 values use their block's range", "[model][random]") {
  const auto format = GENERATE(ScaleFormat::kPlain, ScaleFormat::kPowerOfTwo);
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  options.shards = 1;
  options.scale_format = format;
  MustWrite(options, folder.path());
  const auto shard = testing::ReadShard(folder / "model-00001-of-00001.safetensors");
  const std::string name = "model.layers.0.self_attn.q_a_proj.weight";  // [48, 136]
  const std::string values = shard.Tensor(name);
  std::vector<float> scales(2);
  REQUIRE(shard.Tensor(name + "_scale_inv").size() == 8);
  std::memcpy(scales.data(), shard.Tensor(name + "_scale_inv").data(), 8);
  float largest[2] = {0, 0};
  for (std::size_t i = 0; i < values.size(); ++i) {
    float& block = largest[i % 136 / 128];
    block = std::fmax(block, std::fabs(ToFloat(Fp8E4m3{static_cast<std::uint8_t>(values[i])})));
  }
  for (int block = 0; block < 2; ++block) {
    int exponent = 0;
    const bool power = std::frexp(scales[static_cast<std::size_t>(block)], &exponent) == 0.5F;
    CHECK(power == (format == ScaleFormat::kPowerOfTwo));
    CHECK(largest[block] <= 448.0F);
    CHECK(largest[block] > (format == ScaleFormat::kPlain ? 447.0F : 223.0F));
  }
}

TEST_CASE("The tokenizer file has DeepSeek's form", "[model][random]") {
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  MustWrite(options, folder.path());
  CHECK_FALSE(std::filesystem::exists(folder / "tokenizer.json"));  // no room for 512 ids
  options.vocabulary = 512;
  MustWrite(options, folder.path());
  const auto json = nlohmann::json::parse(ReadBytes(folder / "tokenizer.json"));
  const auto& vocabulary = json["model"]["vocab"];
  // Ids are dense, begin with the three marks and the printable bytes, as in DeepSeek's.
  std::vector<bool> used(512, false);
  for (const auto& [token, id] : vocabulary.items()) {
    REQUIRE_FALSE(used.at(id.get<std::size_t>()));
    used[id.get<std::size_t>()] = true;
  }
  CHECK(vocabulary["<｜begin▁of▁sentence｜>"] == 0);
  CHECK(vocabulary["<｜end▁of▁sentence｜>"] == 1);
  CHECK(vocabulary["!"] == 3);
  CHECK(vocabulary["<"] == 30);
  CHECK(vocabulary["\u010a"] == 201);  // newline
  CHECK(vocabulary["\u0120"] == 223);  // space
  CHECK(vocabulary.contains("\u0120the"));
  // Every merge joins two tokens into a third, in the order of ids.
  std::int64_t last = 258;
  for (const auto& merge : json["model"]["merges"]) {
    const auto text = merge.get<std::string>();
    const std::size_t space = text.find(' ');
    const std::string left = text.substr(0, space);
    const std::string right = text.substr(space + 1);
    REQUIRE(vocabulary.contains(left));
    REQUIRE(vocabulary.contains(right));
    REQUIRE(vocabulary.at(left + right) == ++last);
  }
  CHECK(last > 330);
  std::map<std::string, bool> special;
  std::int64_t id_max = 0;
  for (const auto& token : json["added_tokens"]) {
    special[token["content"]] = token["special"];
    id_max = std::max(id_max, token["id"].get<std::int64_t>());
    if (token["id"] > 2) {
      REQUIRE(token["id"] > last);
      REQUIRE_FALSE(vocabulary.contains(token["content"].get<std::string>()));
    }
  }
  CHECK(id_max < 512);
  CHECK(special.at("<｜begin▁of▁sentence｜>"));
  CHECK(special.at("<|EOT|>"));
  for (const char* plain : {"<think>", "</think>", "｜DSML｜", "<｜User｜>", "<｜Assistant｜>",
                            "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"}) {
    CHECK_FALSE(special.at(plain));
  }
  CHECK_FALSE(
      nlohmann::json::parse(ReadBytes(folder / "tokenizer_config.json")).contains("chat_template"));
}

TEST_CASE("The tokenizer that is written encodes a prompt of the V3.2 format", "[model][random]") {
  const TemporaryFolder folder;
  MustWrite({}, folder.path());
  const auto tokenizer = Tokenizer::Load(folder / "tokenizer.json");
  INFO((tokenizer.ok() ? "" : tokenizer.error().message));
  REQUIRE(tokenizer.ok());
  // Three added tokens, 256 bytes ('!' is the first), 94 merges in order of the pieces, then the
  // other added tokens.
  const std::string prompt =
      "<｜begin▁of▁sentence｜><｜User｜>Hello world! 42\n\nThe other<｜Assistant｜><think>";
  std::vector<std::int32_t> ids;
  for (const TokenId id : tokenizer.value()->EncodeWithAdded(prompt)) {
    ids.push_back(Value(id));
  }
  CHECK(ids == std::vector<std::int32_t>{0, 361, 338, 342, 3, 223, 22, 20, 349, 334, 265, 350, 319,
                                         362, 356});
  CHECK(tokenizer.value()->size() == 373);
  CHECK(tokenizer.value()->AddedToken("</think>") == TokenId{357});
}

TEST_CASE("Options that make no model are refused before anything is written", "[model][random]") {
  const auto refused = [](const std::function<void(RandomCheckpointOptions&)>& change) {
    const TemporaryFolder folder;
    RandomCheckpointOptions options;
    change(options);
    const Status status = WriteRandomCheckpoint(options, folder / "new");
    return !status.ok() && ExitCode(status.error()) == 2 &&
           testing::IsOneLine(status.error().message) && !std::filesystem::exists(folder / "new");
  };
  CHECK(refused([](auto& options) { options.layers = 0; }));
  CHECK(refused([](auto& options) { options.hidden = 100; }));
  CHECK(refused([](auto& options) { options.heads = -1; }));
  CHECK(refused([](auto& options) { options.shards = 0; }));
  CHECK(refused([](auto& options) { options.q_latent = -8; }));
  CHECK(refused([](auto& options) { options.q_latent = 0; }));  // an indexer needs it
  CHECK(refused([](auto& options) { options.experts_per_token = 17; }));
  CHECK(refused([](auto& options) { options.vocabulary = 1; }));
  const Status unwritable = WriteRandomCheckpoint({}, "/proc/nowhere");
  REQUIRE_FALSE(unwritable.ok());
  CHECK(unwritable.error().message.find("/proc/nowhere") == 0);
}

}  // namespace dsa
