// Brings many pieces of data to one device or several: several threads fill host memory ahead, the
// caller queues the copies in order.  Internal to model/.
//
//   fill (readers)   | piece 4 | piece 5 | ...          a ring of equal slots, which the device
//   take (caller)    | piece 2 | piece 3 |              reads without a detour
//   copy (device)    | piece 1 |
//
// A slot is filled again once the device has read it.  At most kStreamBytesMax of host memory, and
// what the functions take for themselves.
#pragma once

#include "kernels/backend.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace dsa {

// The largest piece there may be: a larger tensor is several.
inline constexpr std::int64_t kStreamChunkBytes = std::int64_t{16} << 20;
inline constexpr std::int64_t kStreamBytesMax = 16 * kStreamChunkBytes;

struct StreamCalls {
  // Fills `target`, as large as the piece.  On several threads at once.
  std::function<Status(std::size_t piece, std::span<std::byte> target)> fill;
  // Queues the copies of a filled piece, the first bytes of `source`, on any of the backends, and
  // does not wait for them.
  // On the calling thread, in order.
  std::function<void(std::size_t piece, const HostBuffer& source)> take;
};

// `piece_bytes`: of every piece, in (0, kStreamChunkBytes].  Ends at the first error of `fill`;
// otherwise returns when everything has been copied.  Uses the events of the backends; the ring is
// the first one's memory.
Status StreamPieces(std::span<Backend* const> backends, std::span<const std::int64_t> piece_bytes,
                    const StreamCalls& calls);

}  // namespace dsa
