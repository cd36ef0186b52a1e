// How a checkpoint is cut into pieces that are read one by one, each byte once, whoever holds it:
// what a piece is read into, and what of that goes to which rank.  Internal to model/.
#pragma once

#include "model/checkpoint.h"
#include "model/weight_layout.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace dsa {

// Bytes of what a piece has become that a rank keeps.
struct PieceCopy {
  std::size_t rank;
  std::int64_t offset;  // in what the piece has become
  std::int64_t bytes;   // > 0
  std::byte* target;    // device memory of the rank
};

// A part of one tensor that is read, converted and copied at once.
struct WeightPiece {
  enum class Action : std::uint8_t { kCopy, kCopyScales, kVector, kLatent };

  Action action;
  const PlacedTensor* tensor;  // of the first rank
  CheckpointTensor stored;     // the tensor's own, or its scales
  std::int64_t begin;          // bytes of `stored`
  std::int64_t end;
  std::int64_t first_head;  // kLatent: the heads that these bytes are
  std::int64_t heads;
  std::int64_t filled;  // bytes that it becomes
  // Where ranks hold columns: bytes of a row of each, in order.  Then the rows of the first rank
  // come first, each as long as its part, then those of the second.  Empty: as stored.
  std::vector<std::int64_t> row_bytes{};
  std::vector<PieceCopy> copies{};
};

// The pieces of a tensor, at most kStreamChunkBytes each, in order.  `ranks`: the same tensor as
// each rank holds it; together they hold all of it, whole, in rows or in columns.
std::vector<WeightPiece> SplitTensor(const Checkpoint& checkpoint,
                                     std::span<const PlacedTensor* const> ranks);

// What a head of kv_b becomes, in bytes: W_UK, W_UV, and W_UV's codes and scales, which are 0 where
// KeepsFp8Values says no.  A piece has the first of all its heads, then the second, and so on.
struct HeadBytes {
  std::int64_t keys;
  std::int64_t values;
  std::int64_t value_codes;
  std::int64_t value_scales;

  std::int64_t all() const { return keys + values + value_codes + value_scales; }
};
HeadBytes BytesOfHead(const ModelConfig& config, DataType stored);

// The name of an fp8 tensor's scales.
std::string ScalesName(const TensorSpec& spec);

}  // namespace dsa
