// Where each tensor of a rank lies in device memory: a buffer per layer and one for each run of
// tensors outside the layers.  Row-major values, as stored, so that any product can read them;
// WeightsOfOneInput lie one behind the other.  Internal to model/.
#pragma once

#include "kernels/backend.h"
#include "model/model_config.h"
#include "model/weights.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <unordered_map>
#include <vector>

namespace dsa {

// The type that a tensor is stored in.
using TensorType = std::function<DataType(const TensorSpec& spec)>;

// Of an fp8 tensor's extent of rows or columns.
std::int64_t ScaleBlocks(std::int64_t extent);

// Codes [H, V, 512] and their f32 scales [H * V / 128, 4].
struct ScaledBytes {
  std::byte* codes = nullptr;
  std::byte* scales = nullptr;
};

// A tensor and its device memory.
struct PlacedTensor {
  TensorSpec spec;
  DataType type;
  std::byte* values;       // w_uk for kv_b
  std::byte* scales;       // of fp8, f32 [blocks of held rows, of held columns]; w_uv for kv_b
  ScaledBytes w_uv_fp8{};  // of kv_b, where KeepsFp8Values; else null
};

struct PlacedWeights {
  std::vector<DeviceBuffer> buffers;
  std::vector<PlacedTensor> tensors;  // in the model's order
};

class WeightLayout final {
 public:
  // Lays out what the rank holds of what ForEachTensor lists; `weights` is made to fit and outlives
  // the layout.
  WeightLayout(const ModelConfig& config, const RankShape& rank, ModelWeights& weights,
               const TensorType& type_of);

  std::int64_t bytes() const;

  // Allocates all of it and points the views of `weights` at it.  Contents are undefined.
  Result<PlacedWeights> Allocate(Backend& backend) const;

 private:
  // Offsets in the group's buffer, in bytes; as PlacedTensor.
  struct Placement {
    std::int64_t values;
    std::int64_t scales;
    std::int64_t codes = 0;  // w_uv_fp8
    std::int64_t code_scales = 0;
  };
  struct Entry {
    TensorSpec spec;
    DataType type;
    Placement placement;
  };
  struct Group {
    std::vector<Entry> entries;
    std::int64_t bytes = 0;
  };

  void Add(const TensorSpec& spec, DataType type);
  void Place(Group& group);
  void PlaceJoined(std::span<Entry* const> entries, Group& group) const;
  void PlaceAlone(Entry& entry, Group& group);
  static Placement SizesOf(const Entry& entry);
  Placement PlaceExpert(const ExpertTarget& target, const Placement& sizes, Group& group);
  void Bind(const PlacedTensor& tensor) const;

  const ModelConfig& config_;
  const RankShape rank_;
  ModelWeights& weights_;
  std::vector<Group> groups_;
  std::unordered_map<const StackedWeight*, Placement> stacks_;  // never iterated
};

}  // namespace dsa
