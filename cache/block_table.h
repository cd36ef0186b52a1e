// The blocks of one sequence in order: block i holds the positions i * tokens_per_block onward.
// Owns one reference to each.  Engine thread only.
#pragma once

#include "cache/block_pool.h"
#include "common/check.h"
#include "common/ids.h"

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace dsa {

class BlockTable final {
 public:
  explicit BlockTable(std::int32_t tokens_per_block) : tokens_per_block_(tokens_per_block) {}
  BlockTable(BlockTable&&) = default;
  BlockTable& operator=(BlockTable&&) = default;
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;
  ~BlockTable() { Clear(); }

  // Room for `blocks` without a later allocation.
  void Reserve(std::int64_t blocks) {
    references_.reserve(blocks);
    ids_.reserve(blocks);
  }

  void Append(BlockRef block) {
    ids_.push_back(Value(block.id()));
    references_.push_back(std::move(block));
  }

  // Releases every block, the last one first, so that the end of a prefix is evicted before its
  // beginning.
  void Clear() {
    ids_.clear();
    while (!references_.empty()) {
      references_.pop_back();
    }
    ++clears_;
  }

  std::int64_t blocks() const { return static_cast<std::int64_t>(ids_.size()); }
  std::int64_t capacity_tokens() const { return blocks() * tokens_per_block_; }
  std::int32_t tokens_per_block() const { return tokens_per_block_; }
  BlockId block(std::int64_t index) const { return BlockId{ids_[index]}; }
  std::span<const std::int32_t> ids() const { return ids_; }
  // How often it was cleared: while the number stays the same, a copy of its first blocks holds.
  std::int64_t clears() const { return clears_; }

  // Where the keys of `position` lie: block * tokens_per_block + offset.
  std::int64_t Slot(std::int64_t position) const {
    DSA_CHECK(position >= 0 && position < capacity_tokens(),
              "BlockTable: position {} beyond its {} blocks", position, blocks());
    const std::int64_t block = ids_[position / tokens_per_block_];
    return block * tokens_per_block_ + position % tokens_per_block_;
  }

 private:
  std::vector<std::int32_t> ids_;  // the blocks as numbers, ready to be copied into a batch
  std::int32_t tokens_per_block_;
  std::int64_t clears_ = 0;
  std::vector<BlockRef> references_;  // to the same blocks
};

}  // namespace dsa
