// Reads pieces of a checkpoint's tensors as they will lie on the devices of all ranks: kept,
// converted to f32, de-quantized and split by head, or cut into the ranks' columns.  Internal to
// model/.
#pragma once

#include "model/checkpoint.h"
#include "model/weight_pieces.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace dsa {

// Any thread.
class WeightReader final {
 public:
  explicit WeightReader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  // `target` has piece.filled bytes.  kLatent: as HeadBytes has it.  INVALID_ARGUMENT naming the
  // file for bytes that cannot be read and scales that are not finite and positive.
  Status Fill(const WeightPiece& piece, std::span<std::byte> target);

  // Scales seen so far that are no powers of two.
  std::int64_t odd_scales() const { return odd_scales_.load(std::memory_order_relaxed); }

 private:
  Status CheckScales(const CheckpointTensor& tensor, std::span<const std::byte> bytes);
  Status FillColumns(const WeightPiece& piece, std::span<std::byte> target) const;
  Status FillVector(const WeightPiece& piece, std::span<std::byte> target) const;
  Status FillLatent(const WeightPiece& piece, std::span<std::byte> target);

  const Checkpoint& checkpoint_;
  std::atomic<std::int64_t> odd_scales_{0};
};

}  // namespace dsa
