#include "cache/prefix_cache.h"

#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

constexpr std::int32_t kBlock = 4;

std::vector<TokenId> Tokens(const std::vector<int>& ids) {
  std::vector<TokenId> tokens;
  for (const int id : ids) {
    tokens.push_back(TokenId{id});
  }
  return tokens;
}

PrefixHasher MakeHasher(std::int32_t bits) {
  return PrefixHasher({.identity = "model", .tokens_per_block = kBlock, .hash_bits = bits});
}

PrefixChain MakeChain(const PrefixHasher& hasher, const std::string& salt,
                      const std::vector<TokenId>& tokens) {
  PrefixChain chain;
  chain.root = hasher.Root(salt);
  hasher.Extend(tokens, chain);
  return chain;
}

// Computes `tokens` as a sequence would and publishes its full blocks; returns their ids.
std::vector<std::int32_t> Compute(BlockPool& pool, PrefixCache& cache, const PrefixHasher& hasher,
                                  const std::string& salt, const std::vector<TokenId>& tokens) {
  PrefixChain chain = MakeChain(hasher, salt, tokens);
  BlockTable table(kBlock);
  const auto full = static_cast<std::int64_t>(tokens.size()) / kBlock;
  while (table.blocks() < full) {
    table.Append(*pool.TryAllocate());
  }
  cache.Publish(tokens, full, chain, table);
  return {table.ids().begin(), table.ids().end()};
}

std::vector<std::int32_t> Find(PrefixCache& cache, const PrefixHasher& hasher,
                               const std::string& salt, const std::vector<TokenId>& tokens) {
  PrefixChain chain = MakeChain(hasher, salt, tokens);
  BlockTable table(kBlock);
  cache.Match(tokens, static_cast<std::int64_t>(tokens.size()) / kBlock, chain, table);
  return {table.ids().begin(), table.ids().end()};
}

TEST_CASE("A prefix is found block by block up to its first difference", "[cache][prefix]") {
  BlockPool pool(8, kBlock);
  PrefixCache cache(pool);
  const PrefixHasher hasher = MakeHasher(256);
  const auto tokens = Tokens({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  const auto blocks = Compute(pool, cache, hasher, "", tokens);
  CHECK(cache.entries() == 3);
  CHECK(Find(cache, hasher, "", tokens) == blocks);
  for (std::size_t changed = 0; changed < tokens.size(); ++changed) {
    auto other = tokens;
    other[changed] = TokenId{99};
    const std::vector<std::int32_t> same(blocks.begin(), blocks.begin() + changed / kBlock);
    CHECK(Find(cache, hasher, "", other) == same);
  }
  // The same block behind another one is another prefix.
  CHECK(Find(cache, hasher, "", Tokens({5, 6, 7, 8})).empty());
  cache.CheckInvariants();
}

TEST_CASE("Salt and identity separate equal tokens", "[cache][prefix]") {
  const auto bits = GENERATE(256, 4, 0);
  CAPTURE(bits);
  BlockPool pool(8, kBlock);
  PrefixCache cache(pool);
  const PrefixHasher hasher = MakeHasher(bits);
  const auto tokens = Tokens({1, 2, 3, 4});
  const auto a = Compute(pool, cache, hasher, "a", tokens);
  CHECK(Find(cache, hasher, "b", tokens).empty());
  CHECK(Find(cache, hasher, "", tokens).empty());
  CHECK(Find(cache, hasher, "a", tokens) == a);
  const PrefixHasher other({.identity = "other", .tokens_per_block = kBlock, .hash_bits = bits});
  CHECK(Find(cache, other, "a", tokens).empty());
}

TEST_CASE("Lengths are framed: identity and salt cannot trade bytes", "[cache][prefix]") {
  const PrefixHasher ab({.identity = "ab", .tokens_per_block = kBlock});
  const PrefixHasher a({.identity = "a", .tokens_per_block = kBlock});
  CHECK_FALSE(ab.Root("c") == a.Root("bc"));
  const PrefixHasher wide({.identity = "a", .tokens_per_block = kBlock + 1});
  CHECK_FALSE(a.Root("") == wide.Root(""));
}

// The value is SHA-256 of the framed bytes, computed with another program: it must never change,
// or caches that outlive a restart would be lost or, worse, be taken for others.
TEST_CASE("Hashes are the same in every process", "[cache][prefix]") {
  const PrefixHasher hasher({.identity = "m", .tokens_per_block = 2});
  PrefixChain chain;
  chain.root = hasher.Root("s");
  hasher.Extend(Tokens({1, 2, 3, 4, 5}), chain);
  REQUIRE(chain.hashes.size() == 2);
  const auto hex = [](const BlockHash& hash) {
    std::string text;
    for (const std::uint8_t byte : hash.bytes) {
      constexpr char kDigits[] = "0123456789abcdef";
      text += kDigits[byte >> 4];
      text += kDigits[byte & 15];
    }
    return text;
  };
  CHECK(hex(chain.root) == "427d92c4e7204b2555db1e3252c57f4e5d623fd32576d113a151300a63e27c2b");
  CHECK(hex(chain.hashes[0]) == "4661ec55efde5a5a21b256ee58997a91473d1f80076bf798719037bd43099207");
  CHECK(hex(chain.hashes[1]) == "844d63a37edc320a0223bd6761f7f05964753591042f5d66d0189a2ba0ab87d8");
}

TEST_CASE("Colliding hashes never give another prefix's blocks", "[cache][prefix]") {
  const auto bits = GENERATE(0, 1, 4);
  CAPTURE(bits);
  BlockPool pool(64, kBlock);
  PrefixCache cache(pool);
  const PrefixHasher hasher = MakeHasher(bits);
  // Every prefix over two block contents, so that blocks of equal tokens collide behind different
  // parents too.
  std::vector<std::pair<std::vector<TokenId>, std::vector<std::int32_t>>> computed;
  for (int path = 0; path < 8; ++path) {
    std::vector<TokenId> tokens;
    for (int block = 0; block < 3; ++block) {
      tokens.insert(tokens.end(), kBlock, TokenId{(path >> block) & 1});
    }
    computed.emplace_back(tokens, Compute(pool, cache, hasher, "", tokens));
    cache.CheckInvariants();
  }
  CHECK(cache.entries() == 2 + 4 + 8);
  for (const auto& [tokens, blocks] : computed) {
    const auto found = Find(cache, hasher, "", tokens);
    REQUIRE(found.size() == 3);
    CHECK(found[2] == blocks[2]);  // the last block of each path exists once
  }
}

TEST_CASE("Equal prefixes computed twice share the first one's blocks afterwards",
          "[cache][prefix]") {
  BlockPool pool(8, kBlock);
  PrefixCache cache(pool);
  const PrefixHasher hasher = MakeHasher(256);
  const auto tokens = Tokens({1, 2, 3, 4, 5, 6, 7, 8});
  const auto shorter = Tokens({1, 2, 3, 4});
  const auto first = Compute(pool, cache, hasher, "", shorter);
  const auto second = Compute(pool, cache, hasher, "", tokens);
  const auto found = Find(cache, hasher, "", tokens);
  REQUIRE(found.size() == 2);
  CHECK(found[0] == first[0]);
  CHECK(found[1] == second[1]);
  CHECK(cache.entries() == 2);
}

TEST_CASE("Evicted and forgotten blocks are not found", "[cache][prefix]") {
  BlockPool pool(2, kBlock);
  PrefixCache cache(pool);
  const PrefixHasher hasher = MakeHasher(256);
  const auto tokens = Tokens({1, 2, 3, 4, 5, 6, 7, 8});
  const auto blocks = Compute(pool, cache, hasher, "", tokens);
  SECTION("evicted: the end of the prefix first") {
    const BlockRef taken = *pool.TryAllocate();
    CHECK(Find(cache, hasher, "", tokens) == std::vector<std::int32_t>{blocks[0]});
  }
  SECTION("forgotten") {
    cache.Forget(BlockId{blocks[0]});
    CHECK(Find(cache, hasher, "", tokens).empty());
    CHECK(pool.cached_blocks() == 1);
  }
  cache.CheckInvariants();
}

TEST_CASE("A lookup goes no further than it is told", "[cache][prefix]") {
  BlockPool pool(4, kBlock);
  PrefixCache cache(pool);
  const PrefixHasher hasher = MakeHasher(256);
  const auto tokens = Tokens({1, 2, 3, 4, 5, 6, 7, 8});
  Compute(pool, cache, hasher, "", tokens);
  for (std::int64_t limit = 0; limit <= 2; ++limit) {
    PrefixChain chain = MakeChain(hasher, "", tokens);
    BlockTable table(kBlock);
    CHECK(cache.Match(tokens, limit, chain, table) == limit);
    CHECK(table.blocks() == limit);
    CHECK(chain.linked == limit);
  }
}

}  // namespace
}  // namespace dsa
