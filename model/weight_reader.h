// Reads pieces of a checkpoint's tensors as they will lie on the device: kept, converted to f32, or
// de-quantized and split by head.  Internal to model/.
#pragma once

#include "model/checkpoint.h"
#include "model/weight_layout.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace dsa {

// A part of one tensor that is read, converted and copied at once.
struct WeightPiece {
  enum class Action : std::uint8_t { kCopy, kCopyScales, kVector, kLatent };

  Action action;
  const PlacedTensor* tensor;
  CheckpointTensor stored;  // the tensor's own, or its scales
  std::int64_t begin;       // bytes of `stored`
  std::int64_t end;
  std::int64_t first_head;  // kLatent: the heads that these bytes are
  std::int64_t heads;
  std::int64_t filled;  // bytes that it becomes
};

// The pieces of a tensor, at most kStreamChunkBytes each, in order.
std::vector<WeightPiece> SplitTensor(const Checkpoint& checkpoint, const PlacedTensor& tensor);

// Any thread.
class WeightReader final {
 public:
  explicit WeightReader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  // `target` has piece.filled bytes.  kLatent: first w_uk of its heads, then w_uv. INVALID_ARGUMENT
  // naming the file for bytes that cannot be read and scales that are not finite and positive.
  Status Fill(const WeightPiece& piece, std::span<std::byte> target);

  // Scales seen so far that are no powers of two.
  std::int64_t odd_scales() const { return odd_scales_.load(std::memory_order_relaxed); }

 private:
  Status CheckScales(const CheckpointTensor& tensor, std::span<const std::byte> bytes);
  Status FillVector(const WeightPiece& piece, std::span<std::byte> target) const;
  Status FillLatent(const WeightPiece& piece, std::span<std::byte> target);

  const Checkpoint& checkpoint_;
  std::atomic<std::int64_t> odd_scales_{0};
};

}  // namespace dsa
