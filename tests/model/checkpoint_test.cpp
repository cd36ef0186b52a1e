// Index, headers and configuration must agree in both directions; every disagreement is one line
// that names the file and the tensor.
#include "model/checkpoint.h"

#include "tests/model/checkpoint_files.h"

#include <catch2/catch.hpp>
#include <sys/stat.h>

namespace dsa {
namespace {

namespace fs = std::filesystem;
using testing::EditJson;
using testing::MustWrite;
using testing::ReadShard;
using testing::ShardContents;
using testing::SmallOptions;
using testing::TemporaryFolder;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kFirst = "model-00001-of-00002.safetensors";
constexpr const char* kSecond = "model-00002-of-00002.safetensors";

// Whether opening fails with one line that holds every part.
bool Refuses(const TemporaryFolder& folder, const std::vector<std::string>& parts) {
  const auto opened = Checkpoint::Open(folder.path());
  UNSCOPED_INFO((opened.ok() ? "accepted" : opened.error().message));
  if (opened.ok() || !testing::IsOneLine(opened.error().message) || ExitCode(opened.error()) != 2) {
    return false;
  }
  for (const std::string& part : parts) {
    if (opened.error().message.find(part) == std::string::npos) {
      UNSCOPED_INFO("without: " << part);
      return false;
    }
  }
  return true;
}

// The shard that holds a tensor.
std::string ShardOf(const TemporaryFolder& folder, const std::string& name) {
  const auto index = nlohmann::json::parse(testing::ReadBytes(folder / kIndex));
  return index.at("weight_map").at(name);
}

void EditShard(const TemporaryFolder& folder, const std::string& tensor,
               const std::function<void(ShardContents&)>& edit) {
  const std::string path = folder / ShardOf(folder, tensor);
  ShardContents shard = ReadShard(path);
  edit(shard);
  testing::WriteShard(path, shard);
}

void RemoveEverywhere(const TemporaryFolder& folder, const std::string& tensor) {
  EditShard(folder, tensor, [&](ShardContents& shard) { shard.Remove(tensor); });
  EditJson(folder / kIndex, [&](auto& json) { json["weight_map"].erase(tensor); });
}

void AddEverywhere(const TemporaryFolder& folder, const std::string& name, const std::string& type,
                   const std::vector<std::int64_t>& shape, const std::string& bytes) {
  ShardContents shard = ReadShard(folder / kFirst);
  shard.Add(name, type, shape, bytes);
  testing::WriteShard(folder / kFirst, shard);
  EditJson(folder / kIndex, [&](auto& json) { json["weight_map"][name] = kFirst; });
}

const std::string kNorm = "model.norm.weight";
const std::string kWeight = "model.layers.1.self_attn.o_proj.weight";
const std::string kScale = kWeight + "_scale_inv";

}  // namespace

TEST_CASE("Every family and type opens, with MTP layers and tied embeddings",
          "[model][checkpoint]") {
  const auto architecture =
      GENERATE(Architecture::kDeepseekV32, Architecture::kDeepseekV3, Architecture::kGlmMoeDsa);
  const auto type = GENERATE(CheckpointType::kFp8, CheckpointType::kBf16, CheckpointType::kF32);
  const bool extra = GENERATE(false, true);
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  options.architecture = architecture;
  options.type = type;
  options.mtp_layers = extra ? 1 : 0;
  options.tied_embeddings = extra;
  options.shared_experts = extra ? 0 : 2;
  options.q_latent = extra && architecture == Architecture::kDeepseekV3 ? 0 : 48;
  MustWrite(options, folder.path());
  const auto opened = Checkpoint::Open(folder.path());
  INFO((opened.ok() ? "" : opened.error().message));
  REQUIRE(opened.ok());
  CHECK(opened.value().config().architecture == architecture);
  CHECK(opened.value().config().tied_embeddings == extra);
  CHECK(opened.value().shards() == 2);
  CHECK(opened.value().CheckUnchanged().ok());
}

TEST_CASE("One file without an index is a checkpoint too", "[model][checkpoint]") {
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  options.shards = 1;
  MustWrite(options, folder.path());
  fs::remove(folder / kIndex);
  CHECK(Refuses(folder, {folder.path(), "neither"}));
  fs::rename(folder / "model-00001-of-00001.safetensors", folder / "model.safetensors");
  CHECK(Checkpoint::Open(folder.path()).ok());
  testing::WriteBytes(folder / "other.safetensors", testing::Safetensors("{}", ""));
  CHECK(Refuses(folder, {"other.safetensors", "does not name"}));
}

TEST_CASE("A folder without files or with a broken index is refused", "[model][checkpoint]") {
  const TemporaryFolder folder;
  CHECK(Refuses(folder, {"config.json"}));
  MustWrite(SmallOptions(), folder.path());
  REQUIRE(Checkpoint::Open(folder.path()).ok());
  const std::string index = testing::ReadBytes(folder / kIndex);
  for (const char* bad :
       {"", "[]", "{", "{\"weight_map\": []}", "{\"metadata\": {}}", "{\"weight_map\": {}}",
        "{\"weight_map\": {\"a\": 1}}", "{\"weight_map\": {\"a\": null}}",
        "{\"metadata\": 3, \"weight_map\": {\"a\": \"m.safetensors\"}}",
        "{\"weight_map\": {\"a\": \"m.safetensors\", \"a\": \"m.safetensors\"}}",
        "{\"weight_map\": {\"a\": [[[[[]]]]]}}"}) {
    CAPTURE(bad);
    testing::WriteBytes(folder / kIndex, bad);
    CHECK(Refuses(folder, {kIndex}));
  }
  // total_size is not a promise that anybody keeps.
  testing::WriteBytes(folder / kIndex, index);
  EditJson(folder / kIndex, [](auto& json) { json["metadata"]["total_size"] = 3; });
  CHECK(Checkpoint::Open(folder.path()).ok());
}

TEST_CASE("Each shard is needed, and no other is allowed", "[model][checkpoint]") {
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  options.shards = 4;
  MustWrite(options, folder.path());
  for (int i = 1; i <= 4; ++i) {
    const std::string name = "model-0000" + std::to_string(i) + "-of-00004.safetensors";
    fs::rename(folder / name, folder / "away");
    CHECK(Refuses(folder, {name}));
    fs::rename(folder / "away", folder / name);
  }
  REQUIRE(Checkpoint::Open(folder.path()).ok());
  fs::copy_file(folder / "model-00001-of-00004.safetensors",
                folder / "model-00005-of-00004.safetensors");
  CHECK(Refuses(folder, {"model-00005-of-00004.safetensors", "does not name"}));
}

TEST_CASE("Swapped shards and wrong index entries are refused", "[model][checkpoint]") {
  const TemporaryFolder folder;
  MustWrite(SmallOptions(), folder.path());
  SECTION("swapped") {
    fs::rename(folder / kFirst, folder / "away");
    fs::rename(folder / kSecond, folder / kFirst);
    fs::rename(folder / "away", folder / kSecond);
    CHECK(Refuses(folder, {kFirst, "the index puts it into", kSecond}));
  }
  SECTION("an entry is missing") {
    EditJson(folder / kIndex, [](auto& json) { json["weight_map"].erase(kNorm); });
    CHECK(Refuses(folder, {kNorm, "not in the index"}));
  }
  SECTION("an entry too many") {
    EditJson(folder / kIndex, [](auto& json) { json["weight_map"]["model.x"] = kFirst; });
    CHECK(Refuses(folder, {kIndex, "\"model.x\"", "not in", kFirst}));
  }
  SECTION("a tensor in two shards") {
    const std::string other = ShardOf(folder, kNorm) == kFirst ? kSecond : kFirst;
    ShardContents shard = ReadShard(folder / other);
    shard.Add(kNorm, "BF16", {136}, std::string(272, '\0'));
    testing::WriteShard(folder / other, shard);
    CHECK(Refuses(folder, {other, kNorm, "the index puts it into"}));
  }
  SECTION("an entry names another shard") {
    const std::string other = ShardOf(folder, kNorm) == kFirst ? kSecond : kFirst;
    EditJson(folder / kIndex, [&](auto& json) { json["weight_map"][kNorm] = other; });
    CHECK(Refuses(folder, {kNorm, "the index puts it into"}));
  }
}

TEST_CASE("A shard name that is not a plain file name is refused", "[model][checkpoint]") {
  const TemporaryFolder folder;
  MustWrite(SmallOptions(), folder.path());
  for (const std::string& name :
       {std::string("../x.safetensors"), std::string("/etc/passwd"),
        std::string("/tmp/x.safetensors"), std::string("a/b.safetensors"),
        std::string("a\\b.safetensors"), std::string(".."), std::string("."), std::string(),
        std::string(".safetensors"), std::string("..safetensors"), std::string("x.bin"),
        std::string("x\0.safetensors", 14), std::string(4096, 'x') + ".safetensors"}) {
    CAPTURE(name);
    EditJson(folder / kIndex, [&](auto& json) { json["weight_map"][kNorm] = name; });
    CHECK(Refuses(folder, {kIndex, kNorm, "is not the name of a .safetensors file"}));
  }
}

TEST_CASE("A link may not lead out of the folder", "[model][checkpoint]") {
  const TemporaryFolder folder;
  const TemporaryFolder outside;
  MustWrite(SmallOptions(), folder.path());
  fs::rename(folder / kFirst, outside / "x.safetensors");
  fs::create_symlink(outside / "x.safetensors", folder / kFirst);
  CHECK(Refuses(folder, {kFirst, "leads out of the folder to \"", "/x.safetensors\"",
                         "must lie in the folder", "cp -rL"}));
  fs::remove(folder / kFirst);
  fs::rename(outside / "x.safetensors", folder / "blob");
  fs::create_symlink("blob", folder / kFirst);
  CHECK(Checkpoint::Open(folder.path()).ok());
  fs::remove(folder / kFirst);
  fs::create_symlink("nowhere", folder / kFirst);
  CHECK(Refuses(folder, {kFirst}));
  fs::remove(folder / kFirst);
  fs::create_directory(folder / kFirst);
  CHECK(Refuses(folder, {kFirst, "not a regular file"}));
  fs::remove(folder / kFirst);
  REQUIRE(mkfifo((folder / kFirst).c_str(), 0600) == 0);  // nobody will ever write to it
  CHECK(Refuses(folder, {kFirst, "not a regular file"}));
  // The folder itself may be reached through a link.
  fs::remove(folder / kFirst);
  fs::rename(folder / "blob", folder / kFirst);
  fs::create_directory_symlink(folder.path(), outside / "link");
  CHECK(Checkpoint::Open(outside / "link").ok());
}

TEST_CASE("A snapshot of a Hugging Face cache may link to its own blobs", "[model][checkpoint]") {
  const TemporaryFolder cache;
  const fs::path model = fs::path(cache.path()) / "models--deepseek-ai--small";
  const fs::path snapshot = model / "snapshots" / "0123abcd";
  MustWrite(SmallOptions(), snapshot.string());
  const auto link_first_shard_to = [&](const fs::path& blobs) {
    fs::create_directories(blobs);
    fs::rename(fs::canonical(snapshot / kFirst), blobs / "5f17");
    fs::remove(snapshot / kFirst);
    fs::create_symlink(fs::relative(blobs / "5f17", snapshot), snapshot / kFirst);
  };
  link_first_shard_to(model / "blobs");
  CHECK(Checkpoint::Open(snapshot.string()).ok());
  const auto leads_out = [](const fs::path& folder) {
    const auto opened = Checkpoint::Open(folder.string());
    return !opened.ok() &&
           opened.error().message.find("leads out of the folder") != std::string::npos;
  };
  // The same in a folder that is no snapshot.
  fs::rename(model / "snapshots", model / "copies");
  CHECK(leads_out(model / "copies" / "0123abcd"));
  fs::rename(model / "copies", model / "snapshots");
  for (const fs::path& other : {fs::path(cache.path()) / "models--other" / "blobs",
                                model / "blobs-of-others", model / "snapshots" / "blobs"}) {
    CAPTURE(other.string());
    link_first_shard_to(other);
    CHECK(leads_out(snapshot));
  }
}

TEST_CASE("Each tensor is needed once, with its shape and type", "[model][checkpoint]") {
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  MustWrite(options, folder.path());
  SECTION("any tensor missing") {
    const auto index = nlohmann::json::parse(testing::ReadBytes(folder / kIndex));
    int stride = 0;
    for (const auto& [name, shard] : index.at("weight_map").items()) {
      if (stride++ % 5 != 0) {
        continue;  // a fifth of them: the cost is in writing files
      }
      const TemporaryFolder copy;
      fs::copy(folder.path(), copy.path());
      RemoveEverywhere(copy, name);
      CHECK(Refuses(copy, {"tensor " + name + " is missing"}));
    }
  }
  SECTION("a scale missing") {
    RemoveEverywhere(folder, kScale);
    CHECK(Refuses(folder, {"tensor " + kScale + " is missing"}));
  }
  SECTION("the bias of the indexer's norm missing") {
    RemoveEverywhere(folder, "model.layers.0.self_attn.indexer.k_norm.bias");
    CHECK(Refuses(folder, {"indexer.k_norm.bias is missing"}));
  }
  SECTION("a tensor that nobody knows") {
    AddEverywhere(folder, "model.layers.1.self_attn.rotary.inv_freq", "F32", {1}, "abcd");
    CHECK(Refuses(folder, {kFirst, "\"model.layers.1.self_attn.rotary.inv_freq\"", "not a tensor",
                           "deepseek_v32"}));
  }
  SECTION("a layer too many") {
    AddEverywhere(folder, "model.layers.2.input_layernorm.weight", "BF16", {136},
                  std::string(272, '\0'));
    CHECK(Refuses(folder, {"model.layers.2.input_layernorm.weight", "not a tensor"}));
  }
  SECTION("a scale of a tensor that is not quantized") {
    AddEverywhere(folder, "model.norm.weight_scale_inv", "F32", {2, 1}, "abcdefgh");
    CHECK(Refuses(folder, {"model.norm.weight_scale_inv", "not a tensor"}));
  }
  SECTION("a head though embeddings are tied") {
    EditJson(folder / "config.json", [](auto& json) { json["tie_word_embeddings"] = true; });
    CHECK(Refuses(folder, {"lm_head.weight", "differs from model.embed_tokens.weight"}));
    // The same values twice are no contradiction.
    const std::string name = "model.embed_tokens.weight";
    ShardContents embedding = ReadShard(folder / ShardOf(folder, name));
    const auto range = embedding.header[name]["data_offsets"].get<std::vector<std::size_t>>();
    const std::string values = embedding.data.substr(range[0], range[1] - range[0]);
    const auto put = [&](const std::string& bytes) {
      EditShard(folder, "lm_head.weight", [&](ShardContents& shard) {
        const auto head =
            shard.header["lm_head.weight"]["data_offsets"].get<std::vector<std::size_t>>();
        shard.data.replace(head[0], head[1] - head[0], bytes);
      });
    };
    put(values);
    CHECK(Checkpoint::Open(folder.path()).ok());
    std::string last = values;
    last.back() ^= 1;
    put(last);
    CHECK(Refuses(folder, {"lm_head.weight", "differs from model.embed_tokens.weight"}));
  }
  SECTION("what no engine reads") {
    for (const char* name :
         {"model.layers.1.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq",
          "model.layers.0.self_attn.rotary_emb.cos_cached"}) {
      AddEverywhere(folder, name, "F32", {2}, "abcdefgh");
    }
    CHECK(Checkpoint::Open(folder.path()).ok());
    AddEverywhere(folder, "model.layers.1.self_attn.rotary_emb.scale", "F32", {2}, "abcdefgh");
    CHECK(Refuses(folder, {"rotary_emb.scale", "not a tensor"}));
  }
  SECTION("an MTP layer that is not counted") {
    AddEverywhere(folder, "model.layers.2.enorm.weight", "BF16", {136}, std::string(272, '\0'));
    CHECK(Refuses(folder, {"model.layers.2.enorm.weight", "not a tensor"}));
    AddEverywhere(folder, "model.layers.2.eh_proj.weight", "BF16", {1, 136},
                  std::string(272, '\0'));
    CHECK(Checkpoint::Open(folder.path()).ok());
  }
  SECTION("shapes") {
    const auto reshape = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
      const TemporaryFolder copy;
      fs::copy(folder.path(), copy.path());
      EditShard(copy, name, [&](ShardContents& shard) { shard.header[name]["shape"] = shape; });
      return Refuses(copy, {name, "shape ", "expected "});
    };
    CHECK(reshape(kNorm, {136, 1}));
    CHECK(reshape(kNorm, {1, 136}));
    CHECK(reshape(kWeight, {80, 136}));  // [136, 80] turned
    CHECK(reshape(kWeight, {136 * 80}));
    CHECK(reshape(kScale, {1, 2}));  // [2, 1] turned
  }
  SECTION("types") {
    EditShard(folder, kNorm, [](ShardContents& shard) {
      shard.header[kNorm]["dtype"] = "F8_E4M3";
      shard.header[kNorm]["shape"] = {272};
    });
    CHECK(Refuses(folder, {kNorm}));
  }
}

TEST_CASE("A tensor's type must fit the configuration", "[model][checkpoint]") {
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  const auto retype = [&](const std::string& name, const std::string& type,
                          std::int64_t element_bytes) {
    EditShard(folder, name, [&](ShardContents& shard) {
      std::int64_t count = 1;
      const std::vector<std::int64_t> shape = shard.header[name]["shape"];
      for (const std::int64_t extent : shape) {
        count *= extent;
      }
      const std::string bytes(static_cast<std::size_t>(count * element_bytes), '\0');
      shard.Remove(name);
      shard.Add(name, type, shape, bytes);
    });
  };
  SECTION("fp8 without quantization_config") {
    MustWrite(options, folder.path());
    EditJson(folder / "config.json", [](auto& json) { json.erase("quantization_config"); });
    CHECK(Refuses(folder, {"dtype F8_E4M3", "quantization_config"}));
  }
  SECTION("an embedding in fp8") {
    MustWrite(options, folder.path());
    retype("model.embed_tokens.weight", "F8_E4M3", 1);
    CHECK(Refuses(folder, {"model.embed_tokens.weight", "never quantized"}));
  }
  SECTION("float32 in a bfloat16 model, but for norms and gates") {
    options.type = CheckpointType::kBf16;
    MustWrite(options, folder.path());
    for (const char* name : {"model.norm.weight", "model.layers.1.mlp.gate.weight",
                             "model.layers.0.self_attn.indexer.k_norm.bias",
                             "model.layers.0.self_attn.indexer.weights_proj.weight"}) {
      retype(name, "F32", 4);
      CHECK(Checkpoint::Open(folder.path()).ok());
    }
    retype(kWeight, "F32", 4);
    CHECK(Refuses(folder, {kWeight, "dtype F32, expected BF16"}));
  }
  SECTION("bfloat16 in a float32 model") {
    options.type = CheckpointType::kF32;
    MustWrite(options, folder.path());
    retype("lm_head.weight", "BF16", 2);
    CHECK(Refuses(folder, {"lm_head.weight", "dtype BF16, expected F32"}));
  }
  SECTION("scales in bfloat16") {
    MustWrite(options, folder.path());
    retype(kScale, "BF16", 2);
    CHECK(Refuses(folder, {kScale, "dtype BF16, expected F32"}));
  }
  SECTION("some weights of an fp8 model in bfloat16") {
    MustWrite(options, folder.path());
    retype(kWeight, "BF16", 2);
    CHECK(Refuses(folder, {kScale, "not a tensor"}));  // its scale is left over
    RemoveEverywhere(folder, kScale);
    CHECK(Checkpoint::Open(folder.path()).ok());
    const std::string expert = "model.layers.1.mlp.experts.2.up_proj.weight";
    retype(expert, "BF16", 2);
    RemoveEverywhere(folder, expert + "_scale_inv");
    CHECK(Refuses(folder, {expert, "dtype BF16, expert 0 of the layer has F8_E4M3"}));
  }
}

TEST_CASE("A shard cut or grown by a byte is refused by name", "[model][checkpoint]") {
  const TemporaryFolder folder;
  MustWrite(SmallOptions(), folder.path());
  const std::string whole = testing::ReadBytes(folder / kSecond);
  testing::WriteBytes(folder / kSecond, whole + "x");
  CHECK(Refuses(folder, {folder / kSecond, "1 bytes follow"}));
  for (int cut = 1; cut <= 64; ++cut) {
    const std::size_t bytes = whole.size() - whole.size() * static_cast<std::size_t>(cut) / 65;
    testing::WriteBytes(folder / kSecond, whole.substr(0, bytes - 1));
    CHECK(Refuses(folder, {folder / kSecond}));
  }
}

TEST_CASE("A file that changes after opening is noticed", "[model][checkpoint]") {
  const TemporaryFolder folder;
  MustWrite(SmallOptions(), folder.path());
  const auto opened = Checkpoint::Open(folder.path());
  REQUIRE(opened.value().CheckUnchanged().ok());
  std::ofstream(folder / kSecond, std::ios::app) << "x";
  CHECK(opened.value().CheckUnchanged().error().message.find(folder / kSecond) == 0);
}

}  // namespace dsa
