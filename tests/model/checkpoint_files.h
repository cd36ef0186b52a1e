// Folders and safetensors files that tests write, read back and damage.  Shares no code with the
// reader under test.
#pragma once

#include "common/check.h"
#include "common/json.h"
#include "common/numeric.h"
#include "model/random_checkpoint.h"
#include "tests/temporary_folder.h"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

namespace dsa::testing {

inline std::string ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  DSA_CHECK(file.good(), "cannot write {}", std::string_view(path));
}

// A safetensors file of this header and data.
inline std::string Safetensors(const std::string& header, const std::string& data) {
  std::string bytes(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

// A shard taken apart.
struct ShardContents {
  nlohmann::ordered_json header;
  std::string data;

  // The bytes of one tensor.
  std::string Tensor(const std::string& name) const {
    const auto& offsets = header.at(name).at("data_offsets");
    const auto begin = offsets.at(0).get<std::size_t>();
    return data.substr(begin, offsets.at(1).get<std::size_t>() - begin);
  }
  // Removes the tensor and its bytes.
  void Remove(const std::string& name) {
    const std::size_t begin = header.at(name).at("data_offsets").at(0);
    const std::size_t end = header.at(name).at("data_offsets").at(1);
    header.erase(name);
    data.erase(begin, end - begin);
    for (auto& [key, entry] : header.items()) {
      if (key != "__metadata__" && entry["data_offsets"][0] >= end) {
        for (auto& offset : entry["data_offsets"]) {
          offset = offset.get<std::size_t>() - (end - begin);
        }
      }
    }
  }
  void Add(const std::string& name, const std::string& type, const std::vector<std::int64_t>& shape,
           const std::string& bytes) {
    header[name] = {{"dtype", type},
                    {"shape", shape},
                    {"data_offsets", {data.size(), data.size() + bytes.size()}}};
    data += bytes;
  }
};

inline ShardContents ReadShard(const std::string& path) {
  const std::string bytes = ReadBytes(path);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  return {.header = nlohmann::ordered_json::parse(bytes.substr(8, length)),
          .data = bytes.substr(8 + length)};
}

inline void WriteShard(const std::string& path, const ShardContents& shard) {
  WriteBytes(path, Safetensors(shard.header.dump(), shard.data));
}

inline void EditJson(const std::string& path,
                     const std::function<void(nlohmann::ordered_json&)>& edit) {
  auto json = nlohmann::ordered_json::parse(ReadBytes(path));
  edit(json);
  WriteBytes(path, json.dump());
}

// The smallest model with every kind of layer and partial scale blocks.
inline RandomCheckpointOptions SmallOptions() {
  RandomCheckpointOptions options;
  options.vocabulary = 96;
  options.hidden = 136;
  options.layers = 2;
  options.heads = 2;
  options.q_latent = 48;
  options.nope = 24;
  options.value = 40;
  options.dense_width = 144;
  options.expert_width = 32;
  options.experts = 4;
  options.experts_per_token = 2;
  options.expert_groups = 2;
  options.expert_groups_kept = 1;
  options.index_heads = 2;
  options.index_topk = 8;
  options.context_max = 4096;
  return options;
}

// Writes a checkpoint and CHECK-fails where that fails.
inline void MustWrite(const RandomCheckpointOptions& options, const std::string& folder) {
  const Status status = WriteRandomCheckpoint(options, folder);
  DSA_CHECK(status.ok(), "checkpoint: {}", std::string_view(status.error().message));
}

// One line, not empty: what every error must be.
inline bool IsOneLine(const std::string& message) {
  return !message.empty() && message.find('\n') == std::string::npos && message.size() < 2000;
}

}  // namespace dsa::testing
