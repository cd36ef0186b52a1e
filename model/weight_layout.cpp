#include "model/weight_layout.h"

#include "common/overloaded.h"
#include "common/view_parts.h"

#include <unordered_set>
#include <utility>
#include <variant>

namespace dsa {
namespace {

constexpr std::int64_t kAlignment = 256;  // of every tensor in its buffer
constexpr std::int64_t kValuesOfScale = kWeightBlock * kWeightBlock;

std::int64_t Align(std::int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// A view of w_uk or w_uv, contiguous by head.
ConstAnyTensor3 LatentView(const std::byte* data, std::int64_t heads, std::int64_t width,
                           DataType type) {
  return {.data = data,
          .type = type,
          .rows = heads,
          .heads = width,
          .cols = kLatentWidth,
          .row_stride = width * kLatentWidth,
          .head_stride = kLatentWidth};
}

}  // namespace

std::int64_t ScaleBlocks(std::int64_t extent) {
  return (extent + kWeightBlock - 1) / kWeightBlock;
}

WeightLayout::WeightLayout(const ModelConfig& config, const RankShape& rank, ModelWeights& weights,
                           const TensorType& type_of)
    : config_(config), rank_(rank), weights_(weights) {
  ForEachTensor(config, rank_, weights,
                [this, &type_of](const TensorSpec& spec) { Add(spec, type_of(spec)); });
  for (Group& group : groups_) {
    Place(group);
  }
}

// Of a tensor that is kept as it is stored.
WeightLayout::Placement WeightLayout::SizesOf(const Entry& entry) {
  const TensorSpec& spec = entry.spec;
  const std::int64_t rows = spec.held_rows.count;
  const std::int64_t cols = spec.held_cols.count;
  return {
      .values = rows * cols * SizeOf(entry.type),
      .scales = entry.type == DataType::kFp8E4m3 ? ScaleBlocks(rows) * ScaleBlocks(cols) * 4 : 0};
}

std::int64_t WeightLayout::bytes() const {
  std::int64_t sum = 0;
  for (const Group& group : groups_) {
    sum += group.bytes;
  }
  return sum;
}

void WeightLayout::Add(const TensorSpec& spec, DataType type) {
  if (groups_.empty() || groups_.back().entries.back().spec.layer != spec.layer) {
    groups_.emplace_back();
  }
  groups_.back().entries.push_back({.spec = spec, .type = type, .placement = {}});
}

void WeightLayout::Place(Group& group) {
  std::unordered_map<const LinearWeight*, Entry*> linear;  // never iterated
  for (Entry& entry : group.entries) {
    if (const auto* target = std::get_if<LinearTarget>(&entry.spec.target)) {
      linear[target->weight] = &entry;
    }
  }
  std::unordered_set<const Entry*> placed;
  const std::int64_t layer = group.entries.front().spec.layer;
  if (layer >= 0) {
    for (const auto& weights :
         WeightsOfOneInput(config_, weights_.layers[static_cast<std::size_t>(layer)])) {
      std::vector<Entry*> entries;
      for (const LinearWeight* weight : weights) {
        entries.push_back(linear.at(weight));
        placed.insert(linear.at(weight));
      }
      PlaceJoined(entries, group);
    }
  }
  for (Entry& entry : group.entries) {
    if (!placed.contains(&entry)) {
      PlaceAlone(entry, group);
    }
  }
}

// Values behind values, then scales behind scales.  Scales are packed where the one before ends
// with a whole block of rows, so that both can be read as one.
void WeightLayout::PlaceJoined(std::span<Entry* const> entries, Group& group) const {
  for (Entry* const entry : entries) {
    entry->placement.values = group.bytes;
    group.bytes += Align(SizesOf(*entry).values);
  }
  const Entry* previous = nullptr;
  for (Entry* const entry : entries) {
    const bool continues = previous != nullptr && previous->type == entry->type &&
                           previous->spec.cols == entry->spec.cols &&
                           previous->spec.held_rows.count % kWeightBlock == 0;
    if (!continues) {
      group.bytes = Align(group.bytes);
    }
    entry->placement.scales = group.bytes;
    group.bytes += SizesOf(*entry).scales;
    previous = entry;
  }
  group.bytes = Align(group.bytes);
}

void WeightLayout::PlaceAlone(Entry& entry, Group& group) {
  const auto take_both = [&](const Placement& sizes) {
    entry.placement.values = std::exchange(group.bytes, group.bytes + Align(sizes.values));
    entry.placement.scales = std::exchange(group.bytes, group.bytes + Align(sizes.scales));
  };
  const TensorSpec& spec = entry.spec;
  const std::int64_t latent_row =
      rank_.heads.count * kLatentWidth * SizeOf(config_.activation_type);
  std::visit(
      Overloaded{
          [&](const VectorTarget&) { take_both({.values = spec.rows * 4, .scales = 0}); },
          [&](const MatrixTarget&) { take_both(SizesOf(entry)); },
          [&](const LinearTarget&) { take_both(SizesOf(entry)); },
          [&](const LatentTarget&) {
            take_both({.values = latent_row * config_.nope, .scales = latent_row * config_.value});
            if (KeepsFp8Values(config_, entry.type)) {
              const std::int64_t codes = rank_.heads.count * config_.value * kLatentWidth;
              entry.placement.codes = std::exchange(group.bytes, group.bytes + Align(codes));
              entry.placement.code_scales =
                  std::exchange(group.bytes, group.bytes + Align(codes / kValuesOfScale * 4));
            }
          },
          [&](const ExpertTarget& expert) {
            entry.placement = PlaceExpert(expert, SizesOf(entry), group);
          },
      },
      spec.target);
}

// The first expert of the rank makes room for the stack; the others stand behind it.
WeightLayout::Placement WeightLayout::PlaceExpert(const ExpertTarget& target,
                                                  const Placement& sizes, Group& group) {
  if (sizes.values == 0) {
    return {.values = group.bytes, .scales = group.bytes};
  }
  if (target.place == 0) {
    const std::int64_t values = group.bytes;
    const std::int64_t scales = values + Align(sizes.values * rank_.experts.count);
    group.bytes = scales + Align(sizes.scales * rank_.experts.count);
    stacks_[target.stack] = {.values = values, .scales = scales};
  }
  const Placement& base = stacks_.at(target.stack);
  return {.values = base.values + target.place * sizes.values,
          .scales = base.scales + target.place * sizes.scales};
}

Result<PlacedWeights> WeightLayout::Allocate(Backend& backend) const {
  PlacedWeights placed;
  for (const Group& group : groups_) {
    DSA_ASSIGN_OR_RETURN(DeviceBuffer buffer,
                         backend.Allocate(static_cast<std::size_t>(group.bytes)));
    auto* base = buffer.As<std::byte>();
    for (const Entry& entry : group.entries) {
      placed.tensors.push_back({.spec = entry.spec,
                                .type = entry.type,
                                .values = base + entry.placement.values,
                                .scales = base + entry.placement.scales});
      if (std::holds_alternative<LatentTarget>(entry.spec.target) &&
          KeepsFp8Values(config_, entry.type)) {
        placed.tensors.back().w_uv_fp8 = {.codes = base + entry.placement.codes,
                                          .scales = base + entry.placement.code_scales};
      }
      Bind(placed.tensors.back());
    }
    placed.buffers.push_back(std::move(buffer));
  }
  if (config_.tied_embeddings) {
    weights_.head = RowsOfAny(weights_.embedding, rank_.vocabulary.first, rank_.vocabulary.count);
  }
  return placed;
}

// Points the views of a tensor at its memory.
void WeightLayout::Bind(const PlacedTensor& tensor) const {
  const TensorSpec& spec = tensor.spec;
  const std::int64_t rows = spec.held_rows.count;
  const std::int64_t cols = spec.held_cols.count;
  const bool quantized = tensor.type == DataType::kFp8E4m3;
  const auto* scales = quantized ? reinterpret_cast<const float*>(tensor.scales) : nullptr;
  const ConstAnyMatrix matrix = {
      .data = tensor.values, .type = tensor.type, .rows = rows, .cols = cols, .row_stride = cols};
  std::visit(Overloaded{
                 [&](const VectorTarget& target) {
                   *target.vector = {.data = reinterpret_cast<const float*>(tensor.values),
                                     .size = rows};
                 },
                 [&](const MatrixTarget& target) { *target.matrix = matrix; },
                 [&](const LinearTarget& target) {
                   target.weight->weight = matrix;
                   target.weight->scales = {.data = scales,
                                            .rows = quantized ? ScaleBlocks(rows) : 0,
                                            .cols = quantized ? ScaleBlocks(cols) : 0,
                                            .row_stride = quantized ? ScaleBlocks(cols) : 0};
                 },
                 [&](const LatentTarget& target) {
                   const DataType type = config_.activation_type;
                   *target.w_uk = LatentView(tensor.values, rank_.heads.count, config_.nope, type);
                   *target.w_uv = LatentView(tensor.scales, rank_.heads.count, config_.value, type);
                   *target.w_uv_fp8 = {};
                   if (tensor.w_uv_fp8.codes != nullptr) {
                     constexpr std::int64_t kCols = kLatentWidth / kWeightBlock;
                     *target.w_uv_fp8 = {
                         .values = LatentView(tensor.w_uv_fp8.codes, rank_.heads.count,
                                              config_.value, DataType::kFp8E4m3),
                         .scales = {.data = reinterpret_cast<const float*>(tensor.w_uv_fp8.scales),
                                    .rows = rank_.heads.count * config_.value / kWeightBlock,
                                    .cols = kCols,
                                    .row_stride = kCols}};
                   }
                 },
                 [&](const ExpertTarget& target) {
                   if (target.place == 0 && rows > 0) {
                     *target.stack = {.data = tensor.values,
                                      .type = tensor.type,
                                      .scales = scales,
                                      .experts = rank_.experts.count,
                                      .rows = rows,
                                      .cols = cols};
                   }
                 },
             },
             spec.target);
}

}  // namespace dsa
