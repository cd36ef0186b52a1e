// The blocks of the paged caches: free list, reference counts, and the order in which cached but
// unreferenced blocks are evicted.  Engine thread only; owns no device memory.
//
// A block is in exactly one place:
//   referenced  at least one BlockRef holds it
//   cached      no reference, but the prefix cache can find it; evicted least recently used first
//   free        no reference, contents meaningless
// Every operation is O(1) and allocates nothing.
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
  void Release();

  BlockPool* pool_ = nullptr;
  BlockId id_{};
};

class BlockPool final {
 public:
  BlockPool(std::int32_t blocks, std::int32_t tokens_per_block);  // both > 0; all free
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  ~BlockPool();  // CHECK-fails while a block is referenced

  // A block with one reference, or nullopt where none is free or evictable.  Its contents are
  // undefined.  Free blocks go first; then the least recently used cached block, of which the
  // evict listener is told before it is given away.
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
  std::int32_t available_blocks() const { return blocks_ - referenced_; }  // free + cached
  std::int32_t referenced_blocks() const { return referenced_; }
  std::int32_t cached_blocks() const { return unreferenced_.count; }  // unreferenced and findable
  std::int32_t references(BlockId id) const { return At(id).references; }
  bool is_cached(BlockId id) const { return At(id).cached; }  // findable, referenced or not
  // How often a cached block was evicted or unmarked, lost its last reference or got its first one:
  // while this number stays, a prefix that was found is still found and still held by as many, and
  // blocks that are marked can only make it longer.
  std::int64_t changes() const { return changes_; }
  // How often it was given away: whoever remembers this number can tell later whether the block
  // still belongs to the same holder.
  std::int64_t generation(BlockId id) const { return At(id).generation; }
  // The same for a block about to be written; CHECK-fails unless one holder has it for itself.
  std::int64_t WritableGeneration(BlockId id) const;

  // CHECK-fails unless every block is in exactly one place.  O(blocks); tests and idle time.
  void CheckInvariants() const;

 private:
  friend class BlockRef;

  static constexpr std::int32_t kNone = -1;
  struct Block {
    std::int64_t generation = 0;
    std::int32_t references = 0;
    std::int32_t previous = kNone;  // neighbours in the list of free or cached blocks
    std::int32_t next = kNone;
    bool cached = false;
  };
  // Doubly linked through `Block`; the head leaves first.
  struct List {
    std::int32_t head = kNone;
    std::int32_t tail = kNone;
    std::int32_t count = 0;
  };

  void AddReference(BlockId id);
  void Release(BlockId id);
  void PushBack(List& list, std::int32_t index);
  void PushFront(List& list, std::int32_t index);
  void Unlink(List& list, std::int32_t index);
  std::int32_t CountLinked(const List& list, bool cached) const;
  const Block& At(BlockId id) const;
  Block& At(BlockId id);

  std::int32_t blocks_;
  std::int32_t tokens_per_block_;
  std::int32_t referenced_ = 0;
  std::int64_t changes_ = 0;
  List free_;          // last in, first out: a block just freed is still in the host's caches
  List unreferenced_;  // cached without a reference, least recently used first
  std::vector<Block> table_;
  std::function<void(BlockId)> evict_listener_;
};

}  // namespace dsa
