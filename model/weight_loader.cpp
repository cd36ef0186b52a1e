#include "model/weight_loader.h"

#include "common/check.h"
#include "common/log.h"
#include "model/scale_check.h"
#include "model/tensor_stream.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <unordered_map>
#include <utility>

namespace dsa {
namespace {

constexpr std::int64_t kAlignment = 256;  // of every tensor in its buffer

std::int64_t Align(std::int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::int64_t ScaleBlocks(std::int64_t extent) {
  return (extent + kWeightBlock - 1) / kWeightBlock;
}

// Where a tensor goes in its layer's buffer, in bytes.
struct Placement {
  std::int64_t values = 0;
  std::int64_t scales = 0;  // fp8 only; w_uv for kv_b
};

// The tensors of one layer, or of the model outside the layers, and their common buffer.
struct Group {
  std::vector<TensorSpec> specs;
  std::vector<Placement> placements;  // one a spec
  std::int64_t bytes = 0;
};

// Lays out the groups of a checkpoint in one pass over the list of tensors.
class Layout final {
 public:
  Layout(const Checkpoint& checkpoint, ModelWeights& weights) : checkpoint_(checkpoint) {
    ForEachTensor(checkpoint.config(), weights, [this](const TensorSpec& spec) { Add(spec); });
  }

  const std::vector<Group>& groups() const { return groups_; }
  std::int64_t bytes() const {
    std::int64_t sum = 0;
    for (const Group& group : groups_) {
      sum += group.bytes;
    }
    return sum;
  }

 private:
  void Add(const TensorSpec& spec) {
    if (groups_.empty() || groups_.back().specs.back().layer != spec.layer) {
      groups_.emplace_back();
    }
    Group& group = groups_.back();
    group.specs.push_back(spec);
    group.placements.push_back(Place(spec, group));
  }

  static std::int64_t Take(Group& group, std::int64_t bytes) {
    const std::int64_t offset = group.bytes;
    group.bytes += Align(bytes);
    return offset;
  }

  Placement Place(const TensorSpec& spec, Group& group) {
    const DataType type = checkpoint_.At(spec.name).stored->type;
    const std::int64_t values = spec.rows * spec.cols * SizeOf(type);
    const std::int64_t scales =
        type == DataType::kFp8E4m3 ? ScaleBlocks(spec.rows) * ScaleBlocks(spec.cols) * 4 : 0;
    if (std::holds_alternative<VectorTarget>(spec.target)) {
      return {.values = Take(group, spec.rows * 4), .scales = 0};
    }
    if (std::holds_alternative<LatentTarget>(spec.target)) {
      const ModelConfig& config = checkpoint_.config();
      const std::int64_t row = config.heads * kLatentWidth * SizeOf(config.activation_type);
      const std::int64_t w_uk = Take(group, row * config.nope);
      return {.values = w_uk, .scales = Take(group, row * config.value)};
    }
    if (const auto* expert = std::get_if<ExpertTarget>(&spec.target)) {
      // The first expert makes room for the stack; the others stand behind it.
      if (expert->expert == 0) {
        const std::int64_t experts = checkpoint_.config().experts;
        const std::int64_t base = Take(group, values * experts);
        stacks_[expert->stack] = {.values = base, .scales = Take(group, scales * experts)};
      }
      const Placement& base = stacks_.at(expert->stack);
      return {.values = base.values + expert->expert * values,
              .scales = base.scales + expert->expert * scales};
    }
    const std::int64_t base = Take(group, values);
    return {.values = base, .scales = Take(group, scales)};
  }

  const Checkpoint& checkpoint_;
  std::vector<Group> groups_;
  std::unordered_map<const StackedWeight*, Placement> stacks_;  // never iterated
};

// Device memory of a tensor.
struct Destination {
  std::byte* values;
  std::byte* scales;  // as Placement::scales
};

// Points the views of a spec at its place.
void Bind(const TensorSpec& spec, DataType type, const ModelConfig& config,
          const Destination& place) {
  std::byte* values = place.values;
  std::byte* scales = place.scales;
  const std::int64_t scale_rows = ScaleBlocks(spec.rows);
  const std::int64_t scale_cols = ScaleBlocks(spec.cols);
  const bool quantized = type == DataType::kFp8E4m3;
  const auto* scale_values = quantized ? reinterpret_cast<const float*>(scales) : nullptr;
  const ConstAnyMatrix matrix = {
      .data = values, .type = type, .rows = spec.rows, .cols = spec.cols, .row_stride = spec.cols};
  if (const auto* vector = std::get_if<VectorTarget>(&spec.target)) {
    *vector->vector = {.data = reinterpret_cast<const float*>(values), .size = spec.rows};
  } else if (const auto* plain = std::get_if<MatrixTarget>(&spec.target)) {
    *plain->matrix = matrix;
  } else if (const auto* linear = std::get_if<LinearTarget>(&spec.target)) {
    linear->weight->weight = matrix;
    linear->weight->scales = {.data = scale_values,
                              .rows = quantized ? scale_rows : 0,
                              .cols = quantized ? scale_cols : 0,
                              .row_stride = quantized ? scale_cols : 0};
  } else if (const auto* expert = std::get_if<ExpertTarget>(&spec.target)) {
    if (expert->expert == 0) {
      *expert->stack = {.data = values,
                        .type = type,
                        .scales = scale_values,
                        .experts = config.experts,
                        .rows = spec.rows,
                        .cols = spec.cols};
    }
  } else if (const auto* latent = std::get_if<LatentTarget>(&spec.target)) {
    const auto view = [&config](const std::byte* data, std::int64_t width) {
      return ConstAnyTensor3{.data = data,
                             .type = config.activation_type,
                             .rows = config.heads,
                             .heads = width,
                             .cols = kLatentWidth,
                             .row_stride = width * kLatentWidth,
                             .head_stride = kLatentWidth};
    };
    *latent->w_uk = view(values, config.nope);
    *latent->w_uv = view(scales, config.value);
  }
}

// The tensor's value as the model uses it, before scales.
float ReadValue(const void* data, DataType type, std::int64_t index) {
  switch (type) {
    case DataType::kF32: return static_cast<const float*>(data)[index];
    case DataType::kBf16: return ToFloat(static_cast<const Bf16*>(data)[index]);
    case DataType::kFp8E4m3: return ToFloat(static_cast<const Fp8E4m3*>(data)[index]);
  }
  return 0.0F;
}

// What happens to a piece of a tensor.
enum class Action : std::uint8_t { kCopy, kCopyScales, kVector, kLatent };
struct Task {
  Action action;
  const TensorSpec* spec;
  std::byte* target;  // device memory
  std::byte* second;  // device memory of w_uv, for kLatent
};

class Loader final {
 public:
  Loader(const Checkpoint& checkpoint, Backend& backend, LoadProgress& progress)
      : checkpoint_(checkpoint), backend_(backend), progress_(progress) {}

  Result<DeviceWeights> Load();

 private:
  void Queue(const TensorSpec& spec, std::byte* values, std::byte* scales);
  void QueueTensor(const std::string& name, Task task);
  Status Consume(std::span<const std::byte> bytes);
  Status CheckScales(const CheckpointTensor& tensor, std::span<const std::byte> bytes);
  void StoreVector(const CheckpointTensor& tensor, const Task& task,
                   std::span<const std::byte> bytes);
  Status StoreLatent(const Task& task, std::span<const std::byte> bytes);

  const Checkpoint& checkpoint_;
  Backend& backend_;
  LoadProgress& progress_;
  std::vector<StreamItem> items_;
  std::vector<Task> tasks_;  // one an item
  std::size_t next_ = 0;     // the item that is consumed next
  std::int64_t bytes_total_ = 0;
  std::int64_t bytes_done_ = 0;
  std::int64_t odd_scales_ = 0;  // not powers of two though the configuration says so
};

void Loader::QueueTensor(const std::string& name, Task task) {
  const CheckpointTensor tensor = checkpoint_.At(name);
  const std::int64_t size = tensor.stored->bytes;
  bytes_total_ += size;
  // Converted tensors are consumed whole, the others in chunks.
  const std::int64_t chunk = task.action == Action::kCopy ? kStreamChunkBytes : size;
  for (std::int64_t offset = 0; offset < size; offset += chunk) {
    items_.push_back({.tensor = tensor, .offset = offset, .bytes = std::min(chunk, size - offset)});
    tasks_.push_back(task);
  }
}

void Loader::Queue(const TensorSpec& spec, std::byte* values, std::byte* scales) {
  const bool quantized = checkpoint_.At(spec.name).stored->type == DataType::kFp8E4m3;
  Task task = {.action = Action::kCopy, .spec = &spec, .target = values, .second = scales};
  if (std::holds_alternative<VectorTarget>(spec.target)) {
    task.action = Action::kVector;
  } else if (std::holds_alternative<LatentTarget>(spec.target)) {
    task.action = Action::kLatent;
  }
  QueueTensor(spec.name, task);
  if (quantized && task.action == Action::kCopy) {
    task.action = Action::kCopyScales;
    task.target = scales;
    QueueTensor(spec.name + "_scale_inv", task);
  }
}

Status Loader::CheckScales(const CheckpointTensor& tensor, std::span<const std::byte> bytes) {
  DSA_ASSIGN_OR_RETURN(const std::int64_t odd, CountOddScales(tensor, bytes));
  odd_scales_ += odd;
  return {};
}

void Loader::StoreVector(const CheckpointTensor& tensor, const Task& task,
                         std::span<const std::byte> bytes) {
  std::vector<float> values(static_cast<std::size_t>(task.spec->rows));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = ReadValue(bytes.data(), tensor.stored->type, static_cast<std::int64_t>(i));
  }
  backend_.CopyToDevice(task.target, values.data(), values.size() * sizeof(float));
}

// kv_b [H * (N + V), 512]: of every head, rows 0 .. N - 1 are W_UK and the others W_UV.
Status Loader::StoreLatent(const Task& task, std::span<const std::byte> bytes) {
  const ModelConfig& config = checkpoint_.config();
  const TensorSpec& spec = *task.spec;
  const DataType stored = checkpoint_.At(spec.name).stored->type;
  std::vector<float> scales;
  if (stored == DataType::kFp8E4m3) {
    const CheckpointTensor tensor = checkpoint_.At(spec.name + "_scale_inv");
    scales.resize(static_cast<std::size_t>(tensor.stored->bytes) / sizeof(float));
    const auto raw = std::as_writable_bytes(std::span<float>(scales));
    DSA_RETURN_IF_ERROR(checkpoint_.Read(tensor, 0, raw.data(), raw.size()));
    DSA_RETURN_IF_ERROR(CheckScales(tensor, raw));
  }
  const std::int64_t scale_cols = ScaleBlocks(spec.cols);
  const bool wide = config.activation_type == DataType::kF32;
  const std::int64_t value_bytes = SizeOf(config.activation_type);
  std::vector<std::byte> parts[2];  // w_uk and w_uv, each contiguous by head
  parts[0].reserve(static_cast<std::size_t>(config.heads * config.nope * spec.cols * value_bytes));
  parts[1].reserve(static_cast<std::size_t>(config.heads * config.value * spec.cols * value_bytes));
  for (std::int64_t row = 0; row < spec.rows; ++row) {
    const bool is_key = row % (config.nope + config.value) < config.nope;
    std::vector<std::byte>& part = parts[is_key ? 0 : 1];
    const std::size_t begin = part.size();
    part.resize(begin + static_cast<std::size_t>(spec.cols * value_bytes));
    for (std::int64_t col = 0; col < spec.cols; ++col) {
      float value = ReadValue(bytes.data(), stored, row * spec.cols + col);
      if (!scales.empty()) {
        value *=
            scales[static_cast<std::size_t>(row / kWeightBlock * scale_cols + col / kWeightBlock)];
      }
      std::byte* out = part.data() + begin + static_cast<std::size_t>(col * value_bytes);
      const Bf16 narrow = ToBf16(value);
      std::memcpy(out, wide ? static_cast<const void*>(&value) : &narrow,
                  static_cast<std::size_t>(value_bytes));
    }
  }
  backend_.CopyToDevice(task.target, parts[0].data(), parts[0].size());
  backend_.CopyToDevice(task.second, parts[1].data(), parts[1].size());
  return {};
}

Status Loader::Consume(std::span<const std::byte> bytes) {
  const StreamItem& item = items_[next_];
  const Task& task = tasks_[next_];
  ++next_;
  switch (task.action) {
    case Action::kCopyScales:
      DSA_RETURN_IF_ERROR(CheckScales(item.tensor, bytes));
      backend_.CopyToDevice(task.target, bytes.data(), bytes.size());
      break;
    case Action::kCopy:
      backend_.CopyToDevice(task.target + item.offset, bytes.data(), bytes.size());
      break;
    case Action::kVector: StoreVector(item.tensor, task, bytes); break;
    case Action::kLatent: DSA_RETURN_IF_ERROR(StoreLatent(task, bytes)); break;
  }
  bytes_done_ += item.bytes;
  progress_.OnBytes(bytes_done_, bytes_total_);
  return {};
}

Result<DeviceWeights> Loader::Load() {
  DeviceWeights loaded;
  const Layout layout(checkpoint_, loaded.weights);
  for (const Group& group : layout.groups()) {
    DSA_ASSIGN_OR_RETURN(DeviceBuffer buffer,
                         backend_.Allocate(static_cast<std::size_t>(group.bytes)));
    auto* base = buffer.As<std::byte>();
    for (std::size_t i = 0; i < group.specs.size(); ++i) {
      const TensorSpec& spec = group.specs[i];
      const DataType type = checkpoint_.At(spec.name).stored->type;
      const Destination place = {.values = base + group.placements[i].values,
                                 .scales = base + group.placements[i].scales};
      Bind(spec, type, checkpoint_.config(), place);
      Queue(spec, place.values, place.scales);
    }
    loaded.buffers.push_back(std::move(buffer));
  }
  if (checkpoint_.config().tied_embeddings) {
    loaded.weights.head = loaded.weights.embedding;
  }
  DSA_RETURN_IF_ERROR(StreamTensors(
      checkpoint_, items_, [this](std::span<const std::byte> bytes) { return Consume(bytes); }));
  backend_.Synchronize();
  DSA_RETURN_IF_ERROR(checkpoint_.CheckUnchanged());
  if (odd_scales_ > 0 && checkpoint_.config().scale_format == ScaleFormat::kPowerOfTwo) {
    Log(LogLevel::kWarning, "weight scales are not powers of two though scale_fmt is ue8m0",
        {{"scales", odd_scales_}});
  }
  return loaded;
}

}  // namespace

std::int64_t WeightBytes(const Checkpoint& checkpoint) {
  ModelWeights weights;
  return Layout(checkpoint, weights).bytes();
}

Result<DeviceWeights> LoadWeights(const Checkpoint& checkpoint, Backend& backend,
                                  LoadProgress& progress) {
  return Loader(checkpoint, backend, progress).Load();
}

}  // namespace dsa
