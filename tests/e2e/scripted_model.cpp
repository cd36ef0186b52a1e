#include "tests/e2e/scripted_model.h"

#include "common/check.h"
#include "tests/model/checkpoint_files.h"
#include "tokenizer/byte_level.h"

#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <utility>

namespace dsa::testing {
namespace {

constexpr int kVocabulary = 1024;
constexpr int kHidden = 256;
constexpr int kEndId = 1;

// The tokenizer's file with a token for every piece that a script needs.
class ScriptTokens final {
 public:
  explicit ScriptTokens(const std::string& path)
      : path_(path), file_(nlohmann::ordered_json::parse(ReadBytes(path))) {
    for (const auto& added : file_["added_tokens"]) {
      added_[added["content"]] = added["id"];
    }
  }

  void Save() const { WriteBytes(path_, file_.dump()); }
  int Added(const std::string& content) const { return added_.at(content); }

  // The tokens of a reply, all of them new but for those in brackets.
  std::vector<int> Cut(const std::string& reply) {
    std::vector<int> ids;
    for (std::size_t at = 0; at < reply.size();) {
      const std::size_t bracket = reply.find("[<", at);
      if (bracket == at) {
        const std::size_t end = reply.find(">]", at);
        ids.push_back(Added(reply.substr(at + 1, end - at)));
        at = end + 2;
        continue;
      }
      const std::string text = reply.substr(at, bracket - at);
      at += text.size();
      CutText(text, ids);
    }
    return ids;
  }

 private:
  // The shortest pieces that no reply has used, so that each has one successor.
  void CutText(const std::string& text, std::vector<int>& ids) {
    std::vector<std::string> pieces;
    std::string piece;
    for (const char byte : text) {
      piece += byte;
      if (used_.insert(piece).second) {
        pieces.push_back(piece);
        piece.clear();
      }
    }
    while (!piece.empty()) {  // the rest belongs to the piece before it
      DSA_CHECK(!pieces.empty(), "script: \"{}\" is used up", std::string_view(piece));
      piece.insert(0, pieces.back());
      pieces.pop_back();
      if (used_.insert(piece).second) {
        pieces.push_back(piece);
        piece.clear();
      }
    }
    for (const std::string& one : pieces) {
      ids.push_back(Make(one));
    }
  }

  int Make(const std::string& piece) {
    std::string token;
    for (const char byte : piece) {
      token += ByteCharacter(static_cast<std::uint8_t>(byte));
    }
    auto& vocabulary = file_["model"]["vocab"];
    if (!vocabulary.contains(token)) {
      DSA_CHECK(next_ < kVocabulary, "script: more than {} tokens", kVocabulary);
      vocabulary[token] = next_++;
    }
    return vocabulary[token];
  }

  std::string path_;
  nlohmann::ordered_json file_;
  std::map<std::string, int> added_;
  std::set<std::string> used_;
  int next_ = 520;  // behind all that the file has
};

// As bfloat16.
std::string ToBytes(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) {
    const std::uint16_t bits = ToBf16(value).bits;
    bytes.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
  }
  return bytes;
}

}  // namespace

void WriteScriptedModel(const Script& script, const std::string& folder) {
  RandomCheckpointOptions options;
  options.type = CheckpointType::kBf16;
  options.vocabulary = kVocabulary;
  options.hidden = kHidden;
  options.layers = 1;
  options.dense_layers = 1;
  options.shards = 1;
  options.context_max = 2048;
  MustWrite(options, folder);

  ScriptTokens tokens(folder + "/tokenizer.json");
  std::map<int, int> next;
  for (const auto& [start, text] : {std::pair("</think>", script.after_no_thinking),
                                    std::pair("<think>", script.after_thinking)}) {
    const bool cut = text.ends_with("[cut]");
    int last = tokens.Added(start);
    for (const int id : tokens.Cut(cut ? text.substr(0, text.size() - 5) : text)) {
      DSA_CHECK(next.emplace(last, id).second, "script: token {} has two successors", last);
      last = id;
    }
    if (!next.contains(last)) {
      next.emplace(last, cut ? last : kEndId);
    }
  }
  tokens.Save();

  std::mt19937 random(11);
  std::vector<float> embedding(std::size_t{kVocabulary} * kHidden);
  for (float& value : embedding) {
    value = random() % 2 == 0 ? 1.0F : -1.0F;
  }
  std::vector<float> head(embedding.size(), 0.0F);
  for (const auto& [id, follower] : next) {
    for (int i = 0; i < kHidden; ++i) {
      head[std::size_t{kHidden} * follower + i] += embedding[std::size_t{kHidden} * id + i];
    }
  }
  const std::string path = folder + "/model-00001-of-00001.safetensors";
  ShardContents shard = ReadShard(path);
  const auto put = [&shard](const std::string& name, const std::string& bytes) {
    const std::size_t begin = shard.header[name]["data_offsets"][0];
    DSA_CHECK(shard.Tensor(name).size() == bytes.size(), "script: {} of {} bytes",
              std::string_view(name), bytes.size());
    shard.data.replace(begin, bytes.size(), bytes);
  };
  put("model.embed_tokens.weight", ToBytes(embedding));
  put("lm_head.weight", ToBytes(head));
  put("model.norm.weight", ToBytes(std::vector<float>(kHidden, 1.0F)));
  for (const char* name :
       {"model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"}) {
    put(name, std::string(shard.Tensor(name).size(), '\0'));
  }
  WriteShard(path, shard);
}

}  // namespace dsa::testing
