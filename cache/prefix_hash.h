// Names of token prefixes: a SHA-256 chain over full blocks.  Immutable and thread-safe; prompts
// are hashed by the thread that submits them.
//
//   root   = SHA-256(frame(identity) frame(salt) tokens_per_block)
//   hash i = SHA-256(hash i-1, count, tokens of block i)      hash -1 = root
//
// frame(x) is the length of x as 8 bytes, then x; numbers are little-endian.  The identity names
// everything that cached keys depend on (model, configuration, cache format), so hashes are equal
// across restarts exactly where the keys are.
#pragma once

#include "common/ids.h"

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

struct BlockHash {
  std::array<std::uint8_t, 32> bytes{};
  friend bool operator==(const BlockHash&, const BlockHash&) = default;
};

inline constexpr std::int32_t kHashBitsMax = 256;

// One sequence's way through the prefix cache.
struct PrefixChain {
  std::int64_t linked = 0;            // blocks that were matched or published so far
  std::int64_t last_publication = 0;  // of the last linked block; 0 before the first
  std::vector<BlockHash> hashes;      // of its full blocks, as far as they are hashed
  BlockHash root;
};

class PrefixHasher final {
 public:
  struct Config {
    std::string identity;
    std::int32_t tokens_per_block;
    std::int32_t hash_bits = kHashBitsMax;  // fewer keep the first bits only: tests of collisions
  };
  explicit PrefixHasher(Config config);

  // The beginning of every chain under `salt`.
  BlockHash Root(std::string_view salt) const;

  // Hashes the full blocks of `tokens` that `chain` does not have yet.  Allocates only beyond the
  // capacity of chain.hashes.
  void Extend(std::span<const TokenId> tokens, PrefixChain& chain) const;

  std::int32_t tokens_per_block() const { return config_.tokens_per_block; }

 private:
  BlockHash Next(const BlockHash& parent, std::span<const TokenId> block) const;
  void Truncate(BlockHash& hash) const;

  Config config_;
};

}  // namespace dsa
