// The device memory behind the block ids: both regions of every layer, allocated once.  One block
// id names the same 64 tokens in the latent region and the indexer region of all layers, so a
// block is shared, evicted and reused as a whole.  Thread of its backend; which block is whose is
// the block pool's business.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "kernels/kv_layout.h"

#include <cstdint>

namespace dsa {

struct KvArenaExtents {
  std::int32_t blocks;  // > 0
  int layers;           // > 0
  int indexer_layers;   // `layers` for a model with DSA, 0 for one without
  KvFormat format;
};

class KvArena final {
 public:
  // Contents are undefined.  FAILED_PRECONDITION where the device has not the memory.
  static Result<KvArena> Create(Backend& backend, const KvArenaExtents& extents);

  const KvArenaExtents& extents() const { return extents_; }
  std::int64_t bytes() const;  // of both regions, all layers

  LatentCacheView Latent(int layer) const;
  IndexerCacheView Indexer(int layer) const;  // layer in [0, indexer_layers)

 private:
  explicit KvArena(const KvArenaExtents& extents) : extents_(extents) {}

  KvArenaExtents extents_;
  DeviceBuffer latent_;   // [layers, blocks, 64 * LatentTokenBytes]
  DeviceBuffer indexer_;  // [indexer_layers, blocks, 64 * IndexerTokenBytes]
};

}  // namespace dsa
