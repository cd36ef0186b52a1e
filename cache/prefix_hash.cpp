// OpenSSL's low-level SHA-256 keeps its state in plain memory; the EVP one costs a lookup and an
// allocation a hash, more than the hash of a block.  Both take the same SHA instructions.
#define OPENSSL_API_COMPAT 0x10100000L

#include "cache/prefix_hash.h"

#include "common/check.h"

#include <algorithm>
#include <utility>

#include <openssl/sha.h>

namespace dsa {
namespace {

// Bytes of integers in little-endian order; tokens are hashed as they lie in memory.
static_assert(sizeof(TokenId) == 4);

class Sha256 final {
 public:
  Sha256() { SHA256_Init(&state_); }
  void Add(const void* data, std::size_t bytes) { SHA256_Update(&state_, data, bytes); }
  void AddLength(std::uint64_t length) { Add(&length, sizeof(length)); }
  BlockHash Finish() {
    BlockHash hash;
    SHA256_Final(hash.bytes.data(), &state_);
    return hash;
  }

 private:
  SHA256_CTX state_{};
};

}  // namespace

PrefixHasher::PrefixHasher(Config config) : config_(std::move(config)) {
  DSA_CHECK(config_.tokens_per_block > 0, "PrefixHasher: {} tokens per block",
            config_.tokens_per_block);
  DSA_CHECK(config_.hash_bits >= 0 && config_.hash_bits <= kHashBitsMax, "PrefixHasher: {} bits",
            config_.hash_bits);
}

BlockHash PrefixHasher::Root(std::string_view salt) const {
  Sha256 sha;
  sha.AddLength(config_.identity.size());
  sha.Add(config_.identity.data(), config_.identity.size());
  sha.AddLength(salt.size());
  sha.Add(salt.data(), salt.size());
  sha.AddLength(config_.tokens_per_block);
  return sha.Finish();
}

void PrefixHasher::Extend(std::span<const TokenId> tokens, PrefixChain& chain) const {
  const std::size_t block_tokens = config_.tokens_per_block;
  const std::size_t full_blocks = tokens.size() / block_tokens;
  for (std::size_t block = chain.hashes.size(); block < full_blocks; ++block) {
    const BlockHash& parent = block == 0 ? chain.root : chain.hashes[block - 1];
    const BlockHash hash = Next(parent, tokens.subspan(block * block_tokens, block_tokens));
    chain.hashes.push_back(hash);
  }
}

BlockHash PrefixHasher::Next(const BlockHash& parent, std::span<const TokenId> block) const {
  Sha256 sha;
  sha.Add(parent.bytes.data(), parent.bytes.size());
  sha.AddLength(block.size());
  sha.Add(block.data(), block.size_bytes());
  BlockHash hash = sha.Finish();
  Truncate(hash);
  return hash;
}

void PrefixHasher::Truncate(BlockHash& hash) const {
  if (config_.hash_bits == kHashBitsMax) {
    return;
  }
  const std::int32_t whole = config_.hash_bits / 8;
  const std::int32_t rest = config_.hash_bits % 8;
  hash.bytes[whole] &= static_cast<std::uint8_t>(0xFF00U >> rest);
  std::fill(hash.bytes.begin() + whole + 1, hash.bytes.end(), std::uint8_t{0});
}

}  // namespace dsa
