// Finds blocks that already hold the keys of a prefix.  Engine thread only; the pool owns the
// blocks and decides which unreferenced one is evicted, this is the index over them.
//
// One block id owns the latent and the indexer region, so a hit is joint for both by construction.
// A hit requires equal hash, equal root (and so salt and identity), the same parent block and equal
// tokens: whatever the hash does, no request reads keys of other tokens or of another salt.
#pragma once

#include "cache/block_pool.h"
#include "cache/block_table.h"
#include "cache/prefix_hash.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace dsa {

struct CachedPrefix {
  std::int64_t blocks = 0;
  std::int64_t unreferenced = 0;      // of them: sharing one takes it from those that are available
  std::int64_t last_publication = 0;  // of the last block; 0 where there is none
};

class PrefixCache final {
 public:
  // Takes the pool's evict listener; must outlive every use of the pool.
  explicit PrefixCache(BlockPool& pool);
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // What Match would find, and nothing is referenced.  `known`: what was found of these tokens
  // before; BlockPool::changes() is as it was then.
  CachedPrefix Peek(std::span<const TokenId> tokens, std::int64_t blocks_max,
                    const PrefixChain& chain, const CachedPrefix& known = {}) const;

  // Appends to the empty `table` the longest cached prefix of at most `blocks_max` blocks whose
  // hashes `chain` has; returns how many.  The chain must be unlinked (linked == 0).
  std::int64_t Match(std::span<const TokenId> tokens, std::int64_t blocks_max, PrefixChain& chain,
                     BlockTable& table);

  // Makes the blocks of `table` up to `full_blocks` findable, where an equal one is not already.
  // Their keys must have been computed and `chain` must have their hashes.
  void Publish(std::span<const TokenId> tokens, std::int64_t full_blocks, PrefixChain& chain,
               const BlockTable& table);

  // Takes a block out of the index; nothing where it is not in it.
  void Forget(BlockId id);

  std::int64_t entries() const { return entries_; }

  // CHECK-fails unless the index and the pool agree about every block.  O(blocks).
  void CheckInvariants() const;

 private:
  static constexpr std::int32_t kNone = -1;
  // What is known of a block that is findable.
  struct Entry {
    BlockHash hash;
    BlockHash root;
    std::int64_t publication = 0;  // never reused; 0: the block is not in the index
    std::int64_t parent = 0;       // publication of the block before it; 0 for the first
    std::int32_t next = kNone;     // in its bucket
  };

  std::size_t BucketOf(const BlockHash& hash) const;
  std::int32_t& Bucket(const BlockHash& hash) { return buckets_[BucketOf(hash)]; }
  // The block that holds `block_tokens` behind the block of publication `parent`, 0 for the first.
  std::int32_t Find(const BlockHash& hash, const BlockHash& root, std::int64_t parent,
                    std::span<const TokenId> block_tokens) const;

  void Insert(std::int32_t index, const BlockHash& hash, const PrefixChain& chain,
              std::span<const TokenId> block_tokens);
  void Remove(BlockId id);
  TokenId* BlockTokens(std::int32_t index) {
    return tokens_.data() + static_cast<std::int64_t>(index) * tokens_per_block_;
  }
  const TokenId* BlockTokens(std::int32_t index) const {
    return tokens_.data() + static_cast<std::int64_t>(index) * tokens_per_block_;
  }

  BlockPool& pool_;
  std::int32_t tokens_per_block_;
  std::int64_t entries_ = 0;
  std::int64_t publications_ = 0;
  std::vector<std::int32_t> buckets_;  // first block of each; a power of two of them
  std::vector<Entry> table_;           // [blocks]
  std::vector<TokenId> tokens_;        // [blocks, tokens_per_block]
};

}  // namespace dsa
