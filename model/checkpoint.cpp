#include "model/checkpoint.h"

#include "common/check.h"
#include "common/json.h"
#include "model/checkpoint_files.h"

#include <algorithm>
#include <unordered_set>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::string_view kHead = "lm_head.weight";
constexpr const char* kEmbedding = "model.embed_tokens.weight";
// Tables that follow from the configuration.
constexpr std::string_view kLeftOverTables[] = {"rotary_emb.inv_freq", "rotary_emb.cos_cached",
                                                "rotary_emb.sin_cached"};

std::int64_t CeilDivide(std::int64_t value, std::int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

// Compares the tensors of a checkpoint with those that its configuration needs.
class TensorCheck final {
 public:
  TensorCheck(const ModelConfig& config, const std::string& folder,
              const std::unordered_map<std::string, CheckpointTensor>& by_name)
      : config_(config), folder_(folder), by_name_(by_name) {}

  Status Run(const std::vector<SafetensorsFile>& files) {
    Status first;
    ModelWeights weights;
    ForEachTensor(config_, weights, [&](const TensorSpec& spec) {
      if (first.ok()) {
        first = CheckSpec(spec);
      }
    });
    if (!first.ok()) {
      return first;
    }
    for (const SafetensorsFile& file : files) {
      for (const StoredTensor& stored : file.tensors()) {
        if (!expected_.contains(stored.name) && !Tolerated(stored)) {
          return InvalidArgument(fmt::format("{}: tensor {}: not a tensor of this {} configuration",
                                             file.file().path(), QuotedName(stored.name),
                                             ToString(config_.architecture)));
        }
      }
    }
    return {};
  }

 private:
  static Error Fail(const CheckpointTensor& tensor, std::string_view what) {
    return InvalidArgument(
        fmt::format("{}: tensor {}: {}", tensor.shard->file().path(), tensor.stored->name, what));
  }

  Result<CheckpointTensor> Find(const std::string& name) {
    expected_.insert(name);
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) {
      return InvalidArgument(fmt::format("{}: tensor {} is missing", folder_, name));
    }
    return found->second;
  }

  static Status CheckShape(const CheckpointTensor& tensor, const std::vector<std::int64_t>& shape) {
    if (tensor.stored->shape != shape) {
      return Fail(tensor, fmt::format("shape {}, expected {}", ShapeText(tensor.stored->shape),
                                      ShapeText(shape)));
    }
    return {};
  }

  Status CheckSpec(const TensorSpec& spec) {
    DSA_ASSIGN_OR_RETURN(const CheckpointTensor tensor, Find(spec.name));
    std::vector<std::int64_t> shape = {spec.rows};
    if (spec.cols > 0) {
      shape.push_back(spec.cols);
    }
    DSA_RETURN_IF_ERROR(CheckShape(tensor, shape));
    DSA_RETURN_IF_ERROR(CheckType(spec, tensor));
    if (tensor.stored->type != DataType::kFp8E4m3) {
      return {};
    }
    DSA_ASSIGN_OR_RETURN(const CheckpointTensor scales, Find(spec.name + "_scale_inv"));
    DSA_RETURN_IF_ERROR(CheckShape(
        scales, {CeilDivide(spec.rows, kWeightBlock), CeilDivide(spec.cols, kWeightBlock)}));
    if (scales.stored->type != DataType::kF32) {
      return Fail(scales,
                  fmt::format("dtype {}, expected F32", SafetensorsName(scales.stored->type)));
    }
    return {};
  }

  Status CheckType(const TensorSpec& spec, const CheckpointTensor& tensor) {
    const DataType type = tensor.stored->type;
    if (type == DataType::kFp8E4m3) {
      if (!spec.quantizable()) {
        return Fail(tensor, "dtype F8_E4M3, expected BF16 or F32: it is never quantized");
      }
      if (!config_.quantized) {
        return Fail(tensor, "dtype F8_E4M3, but config.json has no quantization_config");
      }
      return CheckStack(spec, tensor);
    }
    // Norms and gates come in either type, whatever the rest of the model has.
    const bool either =
        std::holds_alternative<VectorTarget>(spec.target) || spec.part == ModelPart::kGate ||
        (spec.part == ModelPart::kIndexer && std::holds_alternative<MatrixTarget>(spec.target));
    if (!either && type != config_.activation_type) {
      return Fail(tensor,
                  fmt::format("dtype {}, expected {} as config.json's dtype says",
                              SafetensorsName(type), SafetensorsName(config_.activation_type)));
    }
    return CheckStack(spec, tensor);
  }

  // The experts of a stack share one type.
  Status CheckStack(const TensorSpec& spec, const CheckpointTensor& tensor) {
    const auto* expert = std::get_if<ExpertTarget>(&spec.target);
    if (expert == nullptr) {
      return {};
    }
    if (expert->place == 0) {
      expert->stack->type = tensor.stored->type;
    }
    if (expert->stack->type != tensor.stored->type) {
      return Fail(tensor, fmt::format("dtype {}, expert 0 of the layer has {}",
                                      SafetensorsName(tensor.stored->type),
                                      SafetensorsName(expert->stack->type)));
    }
    return {};
  }

  // Tensors that nothing reads: of MTP layers, which are left aside; empty ones of a shared expert
  // that is not there; tables that older libraries saved; a head beside tied embeddings, which must
  // equal them (CheckTiedHead).
  bool Tolerated(const StoredTensor& stored) const {
    for (std::int64_t layer = config_.layers; layer < config_.layers + MtpLayers(); ++layer) {
      if (stored.name.starts_with(fmt::format("model.layers.{}.", layer))) {
        return true;
      }
    }
    for (const std::string_view table : kLeftOverTables) {
      if (stored.name.ends_with(table)) {
        return true;
      }
    }
    if (config_.tied_embeddings && stored.name == kHead) {
      return true;
    }
    return config_.shared_width == 0 && stored.bytes == 0 &&
           stored.name.find(".mlp.shared_experts.") != std::string::npos;
  }

  // Newer files do not count the MTP layer: the layer behind the last is one if it joins two hidden
  // states.
  std::int64_t MtpLayers() const {
    const bool uncounted =
        config_.mtp_layers == 0 &&
        by_name_.contains(fmt::format("model.layers.{}.eh_proj.weight", config_.layers));
    return uncounted ? 1 : config_.mtp_layers;
  }

  const ModelConfig& config_;
  const std::string& folder_;
  const std::unordered_map<std::string, CheckpointTensor>& by_name_;
  std::unordered_set<std::string> expected_;  // never iterated
};

}  // namespace

Result<Checkpoint> Checkpoint::Open(const std::string& folder, GenerationFile generation) {
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  DSA_ASSIGN_OR_RETURN(checkpoint.config_, LoadModelConfig(folder, generation));
  DSA_RETURN_IF_ERROR(checkpoint.OpenShards());
  TensorCheck check(checkpoint.config_, folder, checkpoint.by_name_);
  DSA_RETURN_IF_ERROR(check.Run(checkpoint.files_));
  DSA_RETURN_IF_ERROR(checkpoint.CheckTiedHead());
  return checkpoint;
}

// The one case in which opening reads values: a head that says the same as the embedding may stand
// beside it.
Status Checkpoint::CheckTiedHead() const {
  const auto found = by_name_.find(std::string(kHead));
  if (!config_.tied_embeddings || found == by_name_.end()) {
    return {};
  }
  const CheckpointTensor head = found->second;
  const CheckpointTensor embedding = At(kEmbedding);
  bool equal =
      head.stored->type == embedding.stored->type && head.stored->shape == embedding.stored->shape;
  constexpr std::int64_t kPieceBytes = std::int64_t{1} << 20;
  std::vector<std::byte> left(kPieceBytes);
  std::vector<std::byte> right(kPieceBytes);
  for (std::int64_t offset = 0; equal && offset < head.stored->bytes; offset += kPieceBytes) {
    const auto bytes = static_cast<std::size_t>(std::min(kPieceBytes, head.stored->bytes - offset));
    DSA_RETURN_IF_ERROR(Read(head, offset, left.data(), bytes));
    DSA_RETURN_IF_ERROR(Read(embedding, offset, right.data(), bytes));
    equal =
        std::equal(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(bytes), right.begin());
  }
  if (!equal) {
    return InvalidArgument(
        fmt::format("{}: tensor {}: differs from {}, though config.json says "
                    "tie_word_embeddings",
                    head.shard->file().path(), kHead, kEmbedding));
  }
  return {};
}

Status Checkpoint::OpenShards() {
  DSA_ASSIGN_OR_RETURN(const CheckpointFiles files, FindCheckpointFiles(folder_));
  files_.reserve(files.shards.size());  // by_name_ points into it
  for (const std::string& shard : files.shards) {
    DSA_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(folder_ + "/" + shard));
    files_.push_back(std::move(file));
    for (const StoredTensor& stored : files_.back().tensors()) {
      const auto fail = [&](const std::string& what) {
        return InvalidArgument(fmt::format("{}: tensor {}: {}", files_.back().file().path(),
                                           QuotedName(stored.name), what));
      };
      if (files.has_index) {
        const auto indexed = files.shard_of.find(stored.name);
        if (indexed == files.shard_of.end()) {
          return fail("not in the index");
        }
        if (indexed->second != shard) {
          return fail(fmt::format("the index puts it into {}", indexed->second));
        }
      }
      by_name_.emplace(stored.name, CheckpointTensor{.shard = &files_.back(), .stored = &stored});
    }
  }
  for (const std::string& name : files.names) {
    if (!by_name_.contains(name)) {
      return InvalidArgument(fmt::format("{}/{}: tensor {}: not in {}", folder_, kIndexFile,
                                         QuotedName(name), files.shard_of.at(name)));
    }
  }
  return {};
}

CheckpointTensor Checkpoint::At(const std::string& name) const {
  const auto found = by_name_.find(name);
  DSA_CHECK(found != by_name_.end(), "Checkpoint: no tensor {}", std::string_view(name));
  return found->second;
}

Status Checkpoint::Read(const CheckpointTensor& tensor, std::int64_t offset, void* target,
                        std::size_t bytes) const {
  const StoredTensor& stored = *tensor.stored;
  DSA_CHECK(offset >= 0 && offset <= stored.bytes, "Checkpoint: offset {} of {} bytes", offset,
            stored.bytes);
  DSA_CHECK(static_cast<std::int64_t>(bytes) <= stored.bytes - offset,
            "Checkpoint: {} bytes at {} of {}", bytes, offset, stored.bytes);
  return tensor.shard->file().ReadAt(stored.offset + offset, target, bytes);
}

Status Checkpoint::CheckUnchanged() const {
  for (const SafetensorsFile& file : files_) {
    DSA_RETURN_IF_ERROR(file.file().CheckUnchanged());
  }
  return {};
}

}  // namespace dsa
