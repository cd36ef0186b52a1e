// The blocks of the paged caches: free list, reference counts, and the order in which cached but
// unreferenced blocks are evicted.  Engine thread only; owns no device memory.
//
// A block is in exactly one place:
//   referenced  at least one BlockRef holds it
//   cached      no reference, but the prefix cache can find it; evicted least recently used first
//   free        no reference, contents meaningless
#pragma once

#include "common/ids.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace dsa {

class BlockPool;

// One owned reference to a block; released by the destructor.  Must not outlive its pool.
class BlockRef final {
 public:
  BlockRef() = default;
  BlockRef(BlockRef&& other) noexcept;
  BlockRef& operator=(BlockRef&& other) noexcept;
  BlockRef(const BlockRef&) = delete;
  BlockRef& operator=(const BlockRef&) = delete;
  ~BlockRef();

  BlockId id() const { return id_; }
  BlockRef Share() const;  // another reference to the same block

 private:
  friend class BlockPool;
  BlockRef(BlockPool* pool, BlockId id) : pool_(pool), id_(id) {}

  BlockPool* pool_ = nullptr;
  BlockId id_{};
};

class BlockPool final {
 public:
  BlockPool(std::int32_t blocks, std::int32_t tokens_per_block);  // both > 0; all free
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // A block with one reference, or nullopt where none is free or evictable.  Its contents are
  // undefined.  Evicting a cached block calls the evict listener first.
  std::optional<BlockRef> TryAllocate();

  // A reference to a block that is cached or referenced.
  BlockRef Reference(BlockId id);

  // Marks a referenced block as findable by the prefix cache, so that it becomes cached and not
  // free when its last reference goes; or takes the mark back.
  void MarkCached(BlockId id);
  void UnmarkCached(BlockId id);

  // Called with the id of a cached block when it is evicted.
  void SetEvictListener(std::function<void(BlockId)> listener);

  std::int32_t blocks() const { return blocks_; }
  std::int32_t tokens_per_block() const { return tokens_per_block_; }
  std::int32_t available_blocks() const;  // free + cached: what TryAllocate can still give
  std::int32_t referenced_blocks() const;
  std::int32_t cached_blocks() const;  // unreferenced and findable
  std::int32_t references(BlockId id) const;

  // CHECK-fails unless every block is in exactly one place.  O(blocks); tests and idle time.
  void CheckInvariants() const;

 private:
  friend class BlockRef;
  void Release(BlockId id);

  struct Block {
    std::int32_t references = 0;
    bool cached = false;         // findable by the prefix cache
    std::int32_t previous = -1;  // neighbours in the list of free or cached blocks
    std::int32_t next = -1;
  };
  std::int32_t blocks_;
  std::int32_t tokens_per_block_;
  std::vector<Block> table_;
  std::function<void(BlockId)> evict_listener_;
  // The implementation may add its lists here.
};

}  // namespace dsa
