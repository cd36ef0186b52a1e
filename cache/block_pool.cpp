#include "cache/block_pool.h"

#include "common/check.h"

#include <utility>

namespace dsa {

BlockRef::BlockRef(BlockRef&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}

BlockRef& BlockRef::operator=(BlockRef&& other) noexcept {
  if (this != &other) {
    Release();
    pool_ = std::exchange(other.pool_, nullptr);
    id_ = other.id_;
  }
  return *this;
}

BlockRef::~BlockRef() {
  Release();
}

BlockRef BlockRef::Share() const {
  DSA_CHECK(pool_ != nullptr, "BlockRef: an empty reference has nothing to share");
  return pool_->Reference(id_);
}

void BlockRef::Release() {
  if (pool_ != nullptr) {
    std::exchange(pool_, nullptr)->Release(id_);
  }
}

BlockPool::BlockPool(std::int32_t blocks, std::int32_t tokens_per_block)
    : blocks_(blocks), tokens_per_block_(tokens_per_block) {
  DSA_CHECK(blocks > 0, "BlockPool: {} blocks", blocks);
  DSA_CHECK(tokens_per_block > 0, "BlockPool: {} tokens per block", tokens_per_block);
  table_.resize(blocks);
  for (std::int32_t index = 0; index < blocks; ++index) {
    PushBack(free_, index);
  }
}

BlockPool::~BlockPool() {
  DSA_CHECK(referenced_ == 0, "BlockPool: destroyed with {} blocks referenced", referenced_);
}

std::optional<BlockRef> BlockPool::TryAllocate() {
  std::int32_t index = free_.head;
  if (index != kNone) {
    Unlink(free_, index);
  } else {
    index = unreferenced_.head;
    if (index == kNone) {
      return std::nullopt;
    }
    if (evict_listener_) {
      evict_listener_(BlockId{index});
    }
    Unlink(unreferenced_, index);
    table_[index].cached = false;
    ++changes_;
  }
  table_[index].references = 1;
  ++table_[index].generation;
  ++referenced_;
  return BlockRef(this, BlockId{index});
}

BlockRef BlockPool::Reference(BlockId id) {
  AddReference(id);
  return {this, id};
}

void BlockPool::AddReference(BlockId id) {
  Block& block = At(id);
  DSA_CHECK(block.references > 0 || block.cached, "BlockPool: block {} is free", Value(id));
  if (block.references == 0) {
    Unlink(unreferenced_, Value(id));
    ++referenced_;
    ++changes_;
  }
  ++block.references;
}

void BlockPool::Release(BlockId id) {
  Block& block = At(id);
  DSA_CHECK(block.references > 0, "BlockPool: block {} released once too often", Value(id));
  --block.references;
  if (block.references > 0) {
    return;
  }
  --referenced_;
  if (block.cached) {
    PushBack(unreferenced_, Value(id));
    ++changes_;
  } else {
    PushFront(free_, Value(id));
  }
}

std::int64_t BlockPool::WritableGeneration(BlockId id) const {
  const Block& block = At(id);
  DSA_CHECK(block.references == 1, "BlockPool: block {} has {} holders and is written", Value(id),
            block.references);
  DSA_CHECK(!block.cached, "BlockPool: block {} is shareable and written", Value(id));
  return block.generation;
}

void BlockPool::MarkCached(BlockId id) {
  Block& block = At(id);
  DSA_CHECK(block.references > 0, "BlockPool: block {} is cached without a holder", Value(id));
  DSA_CHECK(!block.cached, "BlockPool: block {} is cached twice", Value(id));
  block.cached = true;
}

void BlockPool::UnmarkCached(BlockId id) {
  Block& block = At(id);
  DSA_CHECK(block.cached, "BlockPool: block {} is not cached", Value(id));
  block.cached = false;
  ++changes_;
  if (block.references == 0) {
    Unlink(unreferenced_, Value(id));
    PushFront(free_, Value(id));
  }
}

void BlockPool::SetEvictListener(std::function<void(BlockId)> listener) {
  evict_listener_ = std::move(listener);
}

void BlockPool::PushBack(List& list, std::int32_t index) {
  table_[index].previous = list.tail;
  table_[index].next = kNone;
  (list.tail == kNone ? list.head : table_[list.tail].next) = index;
  list.tail = index;
  ++list.count;
}

void BlockPool::PushFront(List& list, std::int32_t index) {
  table_[index].previous = kNone;
  table_[index].next = list.head;
  (list.head == kNone ? list.tail : table_[list.head].previous) = index;
  list.head = index;
  ++list.count;
}

void BlockPool::Unlink(List& list, std::int32_t index) {
  Block& block = table_[index];
  (block.previous == kNone ? list.head : table_[block.previous].next) = block.next;
  (block.next == kNone ? list.tail : table_[block.next].previous) = block.previous;
  block.previous = kNone;
  block.next = kNone;
  --list.count;
}

const BlockPool::Block& BlockPool::At(BlockId id) const {
  DSA_CHECK(Value(id) >= 0 && Value(id) < blocks_, "BlockPool: block {} of {}", Value(id), blocks_);
  return table_[Value(id)];
}

BlockPool::Block& BlockPool::At(BlockId id) {
  DSA_CHECK(Value(id) >= 0 && Value(id) < blocks_, "BlockPool: block {} of {}", Value(id), blocks_);
  return table_[Value(id)];
}

// Walks one list and returns its length.
std::int32_t BlockPool::CountLinked(const List& list, bool cached) const {
  std::int32_t count = 0;
  std::int32_t previous = kNone;
  for (std::int32_t index = list.head; index != kNone; index = table_[index].next) {
    const Block& block = table_[index];
    DSA_CHECK(block.references == 0, "BlockPool: listed block {} has {} references", index,
              block.references);
    DSA_CHECK(block.cached == cached, "BlockPool: block {} is in the wrong list", index);
    DSA_CHECK(block.previous == previous, "BlockPool: block {} is linked to {}, not {}", index,
              block.previous, previous);
    previous = index;
    ++count;
    DSA_CHECK(count <= blocks_, "BlockPool: a list of {} blocks is a circle", blocks_);
  }
  DSA_CHECK(list.tail == previous, "BlockPool: tail {} of a list that ends at {}", list.tail,
            previous);
  DSA_CHECK(list.count == count, "BlockPool: {} blocks counted, {} listed", list.count, count);
  return count;
}

void BlockPool::CheckInvariants() const {
  std::int32_t referenced = 0;
  for (const Block& block : table_) {
    DSA_CHECK(block.references >= 0, "BlockPool: {} references", block.references);
    referenced += block.references > 0 ? 1 : 0;
  }
  const std::int32_t free = CountLinked(free_, false);
  const std::int32_t unreferenced = CountLinked(unreferenced_, true);
  DSA_CHECK(referenced == referenced_, "BlockPool: {} referenced, {} counted", referenced,
            referenced_);
  DSA_CHECK(free + unreferenced + referenced == blocks_,
            "BlockPool: {} free + {} cached + {} referenced of {}", free, unreferenced, referenced,
            blocks_);
}

}  // namespace dsa
