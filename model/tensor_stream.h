// Reads many pieces of a checkpoint ahead of their use: several threads read, the caller consumes
// in order.  Internal to model/.
#pragma once

#include "model/checkpoint.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace dsa {

inline constexpr std::int64_t kStreamChunkBytes = 16 << 20;

// Bytes [offset, offset + bytes) of a tensor.
struct StreamItem {
  CheckpointTensor tensor;
  std::int64_t offset;
  std::int64_t bytes;
};

// Calls `consume` for every item, in order, on the calling thread; its bytes live until it returns.
// Ends at the first error of a read or of `consume`.  Memory: a few of the largest items.
Status StreamTensors(const Checkpoint& checkpoint, std::span<const StreamItem> items,
                     const std::function<Status(std::span<const std::byte>)>& consume);

}  // namespace dsa
