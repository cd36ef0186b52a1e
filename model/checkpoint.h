// A checkpoint folder in the Hugging Face layout: config.json, generation_config.json, and either
// one model.safetensors or shards under model.safetensors.index.json.
//
// Opening it reads all headers and checks that index, headers and configuration agree in both
// directions: every tensor that the model needs is there exactly once with its shape and type, and
// nothing is there that the model does not know, but for left-overs that no engine reads.  Tensor
// bytes are read later.
#pragma once

#include "common/status.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "model/weights.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace dsa {

// Where a tensor lies.
struct CheckpointTensor {
  const SafetensorsFile* shard;
  const StoredTensor* stored;
};

// Immutable after Open; thread-safe.
class Checkpoint final {
 public:
  // INVALID_ARGUMENT or NOT_FOUND with one line naming file, tensor or key, value and rule.
  static Result<Checkpoint> Open(const std::string& folder,
                                 GenerationFile generation = GenerationFile::kRead);

  const std::string& folder() const { return folder_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }
  std::int64_t shards() const { return static_cast<std::int64_t>(files_.size()); }
  std::int64_t tensors() const { return static_cast<std::int64_t>(by_name_.size()); }

  // A tensor of the configuration's list, or the "<name>_scale_inv" of a quantized one.
  CheckpointTensor At(const std::string& name) const;

  // Fills `target` with bytes [offset, offset + bytes) of the tensor.
  Status Read(const CheckpointTensor& tensor, std::int64_t offset, void* target,
              std::size_t bytes) const;

  // INVALID_ARGUMENT if a shard's size or modification time changed since Open.
  Status CheckUnchanged() const;

 private:
  Checkpoint() = default;
  Status OpenShards();
  Status CheckTiedHead() const;

  std::string folder_;
  ModelConfig config_;
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string, CheckpointTensor> by_name_;  // never iterated
};

}  // namespace dsa
