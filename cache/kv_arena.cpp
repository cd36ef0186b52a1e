#include "cache/kv_arena.h"

#include <utility>

namespace dsa {
namespace {

std::int64_t LatentLayerBytes(const KvArenaExtents& extents) {
  return static_cast<std::int64_t>(extents.blocks) * kTokensPerBlock *
         LatentTokenBytes(extents.format);
}

std::int64_t IndexerLayerBytes(const KvArenaExtents& extents) {
  return static_cast<std::int64_t>(extents.blocks) * kTokensPerBlock *
         IndexerTokenBytes(extents.format);
}

}  // namespace

Result<KvArena> KvArena::Create(Backend& backend, const KvArenaExtents& extents) {
  DSA_CHECK(extents.blocks > 0, "KvArena: {} blocks", extents.blocks);
  DSA_CHECK(extents.layers > 0, "KvArena: {} layers", extents.layers);
  DSA_CHECK(extents.indexer_layers == 0 || extents.indexer_layers == extents.layers,
            "KvArena: {} indexer layers beside {} layers", extents.indexer_layers, extents.layers);
  KvArena arena(extents);
  const auto latent_bytes = static_cast<std::size_t>(extents.layers * LatentLayerBytes(extents));
  DSA_ASSIGN_OR_RETURN(arena.latent_, backend.Allocate(latent_bytes));
  if (extents.indexer_layers > 0) {
    const auto indexer_bytes =
        static_cast<std::size_t>(extents.indexer_layers * IndexerLayerBytes(extents));
    DSA_ASSIGN_OR_RETURN(arena.indexer_, backend.Allocate(indexer_bytes));
  }
  return arena;
}

std::int64_t KvArena::bytes() const {
  return extents_.blocks * BytesPerBlock(extents_.layers, extents_.indexer_layers, extents_.format);
}

LatentCacheView KvArena::Latent(int layer) const {
  DSA_CHECK(layer >= 0 && layer < extents_.layers, "KvArena: layer {} of {}", layer,
            extents_.layers);
  return {.data = latent_.As<std::uint8_t>() + layer * LatentLayerBytes(extents_),
          .blocks = extents_.blocks,
          .format = extents_.format};
}

IndexerCacheView KvArena::Indexer(int layer) const {
  DSA_CHECK(layer >= 0 && layer < extents_.indexer_layers, "KvArena: indexer layer {} of {}", layer,
            extents_.indexer_layers);
  return {.data = indexer_.As<std::uint8_t>() + layer * IndexerLayerBytes(extents_),
          .blocks = extents_.blocks,
          .format = extents_.format};
}

}  // namespace dsa
