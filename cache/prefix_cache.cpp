#include "cache/prefix_cache.h"

#include "common/check.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace dsa {

PrefixCache::PrefixCache(BlockPool& pool)
    : pool_(pool), tokens_per_block_(pool.tokens_per_block()) {
  const auto blocks = static_cast<std::uint64_t>(pool.blocks());
  buckets_.assign(std::bit_ceil(2 * blocks), kNone);
  table_.resize(blocks);
  tokens_.resize(blocks * tokens_per_block_);
  pool_.SetEvictListener([this](BlockId id) { Remove(id); });
}

std::size_t PrefixCache::BucketOf(const BlockHash& hash) const {
  std::uint64_t key = 0;
  std::memcpy(&key, hash.bytes.data(), sizeof(key));
  return key & (buckets_.size() - 1);
}

std::int32_t PrefixCache::Find(const BlockHash& hash, const BlockHash& root, std::int64_t parent,
                               std::span<const TokenId> block_tokens) const {
  for (std::int32_t index = buckets_[BucketOf(hash)]; index != kNone; index = table_[index].next) {
    const Entry& entry = table_[index];
    if (entry.hash == hash && entry.root == root && entry.parent == parent &&
        std::equal(block_tokens.begin(), block_tokens.end(), BlockTokens(index))) {
      return index;
    }
  }
  return kNone;
}

CachedPrefix PrefixCache::Peek(std::span<const TokenId> tokens, std::int64_t blocks_max,
                               const PrefixChain& chain, const CachedPrefix& known) const {
  DSA_CHECK(chain.linked == 0, "PrefixCache: the chain already has {} blocks", chain.linked);
  CachedPrefix found = known;
  const auto blocks = std::min(blocks_max, static_cast<std::int64_t>(chain.hashes.size()));
  for (; found.blocks < blocks; ++found.blocks) {
    const std::int32_t index =
        Find(chain.hashes[found.blocks], chain.root, found.last_publication,
             tokens.subspan(found.blocks * tokens_per_block_, tokens_per_block_));
    if (index == kNone) {
      break;
    }
    found.last_publication = table_[index].publication;
    found.unreferenced += pool_.references(BlockId{index}) == 0 ? 1 : 0;
  }
  return found;
}

std::int64_t PrefixCache::Match(std::span<const TokenId> tokens, std::int64_t blocks_max,
                                PrefixChain& chain, BlockTable& table) {
  DSA_CHECK(chain.linked == 0, "PrefixCache: the chain already has {} blocks", chain.linked);
  DSA_CHECK(table.blocks() == 0, "PrefixCache: the table already has {} blocks", table.blocks());
  const auto blocks = std::min(blocks_max, static_cast<std::int64_t>(chain.hashes.size()));
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int32_t index = Find(chain.hashes[block], chain.root, chain.last_publication,
                                    tokens.subspan(block * tokens_per_block_, tokens_per_block_));
    if (index == kNone) {
      break;
    }
    table.Append(pool_.Reference(BlockId{index}));
    chain.last_publication = table_[index].publication;
    ++chain.linked;
  }
  return chain.linked;
}

void PrefixCache::Publish(std::span<const TokenId> tokens, std::int64_t full_blocks,
                          PrefixChain& chain, const BlockTable& table) {
  DSA_CHECK(full_blocks <= static_cast<std::int64_t>(chain.hashes.size()),
            "PrefixCache: {} blocks to publish, {} hashed", full_blocks, chain.hashes.size());
  DSA_CHECK(full_blocks <= table.blocks(), "PrefixCache: {} blocks to publish of {}", full_blocks,
            table.blocks());
  for (; chain.linked < full_blocks; ++chain.linked) {
    const BlockHash& hash = chain.hashes[chain.linked];
    const auto block_tokens = tokens.subspan(chain.linked * tokens_per_block_, tokens_per_block_);
    std::int32_t index = Find(hash, chain.root, chain.last_publication, block_tokens);
    if (index == kNone) {
      index = Value(table.block(chain.linked));
      Insert(index, hash, chain, block_tokens);
    }
    chain.last_publication = table_[index].publication;
  }
}

void PrefixCache::Insert(std::int32_t index, const BlockHash& hash, const PrefixChain& chain,
                         std::span<const TokenId> block_tokens) {
  pool_.MarkCached(BlockId{index});
  std::copy(block_tokens.begin(), block_tokens.end(), BlockTokens(index));
  std::int32_t& bucket = Bucket(hash);
  table_[index] = {.hash = hash,
                   .root = chain.root,
                   .publication = ++publications_,
                   .parent = chain.last_publication,
                   .next = bucket};
  bucket = index;
  ++entries_;
}

void PrefixCache::Forget(BlockId id) {
  if (table_[Value(id)].publication != 0) {
    Remove(id);
    pool_.UnmarkCached(id);
  }
}

void PrefixCache::Remove(BlockId id) {
  Entry& entry = table_[Value(id)];
  DSA_CHECK(entry.publication != 0, "PrefixCache: block {} is not in the index", Value(id));
  std::int32_t* link = &Bucket(entry.hash);
  while (*link != Value(id)) {
    DSA_CHECK(*link != kNone, "PrefixCache: block {} is not in its bucket", Value(id));
    link = &table_[*link].next;
  }
  *link = entry.next;
  entry = {};
  --entries_;
}

void PrefixCache::CheckInvariants() const {
  std::int64_t linked = 0;
  for (const std::int32_t head : buckets_) {
    for (std::int32_t index = head; index != kNone; index = table_[index].next) {
      ++linked;
      DSA_CHECK(linked <= entries_, "PrefixCache: more than its {} entries are linked", entries_);
      DSA_CHECK(table_[index].publication != 0, "PrefixCache: removed block {} is linked", index);
    }
  }
  DSA_CHECK(linked == entries_, "PrefixCache: {} entries, {} linked", entries_, linked);
  for (std::int32_t index = 0; index < pool_.blocks(); ++index) {
    const bool listed = table_[index].publication != 0;
    DSA_CHECK(listed == pool_.is_cached(BlockId{index}),
              "PrefixCache: index and pool disagree about block {}", index);
  }
}

}  // namespace dsa
