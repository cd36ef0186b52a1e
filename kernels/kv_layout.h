// Where each byte of a cache block lies.  The only place that knows: the arena sizes itself with
// it, the writers and readers (CPU and CUDA) address with it, and docs/kv_cache.md quotes it.
//
// A block holds kTokensPerBlock consecutive tokens of one sequence, for one layer, in two regions:
// the latent (what attention reads) and the indexer's keys (what selection reads).  Neither is a
// tensor: describing it as one hides whether scales lie beside their token or after all of them,
// and both take the same number of bytes.
#pragma once

#include <cstdint>

namespace dsa {

inline constexpr int kTokensPerBlock = 64;

// How both regions store their values.  Only kFp8 rotates indexer keys by the Hadamard matrix.
enum class KvFormat : std::uint8_t { kFp8, kBf16, kF32 };

inline constexpr int kLatentValues = 512;      // c, the compressed key-value of MLA
inline constexpr int kLatentRopeValues = 64;   // the shared RoPE key, never quantized
inline constexpr int kIndexerValues = 128;     // one indexer key
inline constexpr int kIndexerRopeValues = 64;  // its first 64 values are rotated by position
inline constexpr int kValuesPerScale = 128;    // fp8 values that share one scale

// The fp8 latent region, one record per token:
//
//   0               512                 528                    656
//   | 512 x e4m3    | 4 x f32 scale     | 64 x bf16 RoPE key   |  next token ...
//
// Scale i, a power of two, covers values [128*i, 128*(i+1)).
struct LatentBlock {
  static constexpr int kScales = kLatentValues / kValuesPerScale;
  static constexpr int kTokenBytes = kLatentValues + kScales * 4 + kLatentRopeValues * 2;
  static constexpr int kBytes = kTokensPerBlock * kTokenBytes;

  static constexpr int Values(int token) { return token * kTokenBytes; }
  static constexpr int Scales(int token) { return Values(token) + kLatentValues; }
  static constexpr int Rope(int token) { return Scales(token) + kScales * 4; }
};

// The fp8 indexer region, all values first and then all scales:
//
//   0                               8192                    8448
//   | 64 tokens x 128 x e4m3        | 64 tokens x f32 scale |
struct IndexerBlock {
  static constexpr int kBytes = kTokensPerBlock * (kIndexerValues + 4);

  static constexpr int Values(int token) { return token * kIndexerValues; }
  static constexpr int Scale(int token) { return kTokensPerBlock * kIndexerValues + token * 4; }
};

static_assert(LatentBlock::kTokenBytes == 656);
static_assert(LatentBlock::Rope(0) == 528);
static_assert(LatentBlock::kTokenBytes % 16 == 0, "records are read 16 bytes at a time");
static_assert(IndexerBlock::Scale(0) == 8192 && IndexerBlock::kBytes == 8448);

// The bf16 and f32 formats hold plain rows, one per token, of one element type:
//   latent:  | 512 x value | 64 x RoPE key |      indexer:  | 128 x value |
constexpr int ElementBytes(KvFormat format) {
  return format == KvFormat::kF32 ? 4 : 2;  // of a plain row; fp8 has none
}

// Bytes of one token in one layer.
constexpr std::int64_t LatentTokenBytes(KvFormat format) {
  return format == KvFormat::kFp8 ? LatentBlock::kTokenBytes
                                  : (kLatentValues + kLatentRopeValues) * ElementBytes(format);
}
constexpr std::int64_t IndexerTokenBytes(KvFormat format) {
  return format == KvFormat::kFp8 ? kIndexerValues + 4 : kIndexerValues * ElementBytes(format);
}
static_assert(LatentTokenBytes(KvFormat::kBf16) == 1152 &&
              IndexerTokenBytes(KvFormat::kBf16) == 256);
static_assert(LatentTokenBytes(KvFormat::kF32) == 2304 && IndexerTokenBytes(KvFormat::kF32) == 512);

// What one block costs over all layers.  Budgeting and allocation both call this.
// `indexer_layers` is `layers` for a model with DSA and 0 for one without.
constexpr std::int64_t BytesPerBlock(int layers, int indexer_layers, KvFormat format) {
  return kTokensPerBlock *
         (layers * LatentTokenBytes(format) + indexer_layers * IndexerTokenBytes(format));
}
static_assert(BytesPerBlock(61, 61, KvFormat::kFp8) == 3'076'352);

// One layer's latent region: block b starts at data + b * 64 * LatentTokenBytes(format).
struct LatentCacheView {
  std::uint8_t* data;
  std::int64_t blocks;
  KvFormat format;
};

// One layer's indexer region: block b starts at data + b * 64 * IndexerTokenBytes(format).
struct IndexerCacheView {
  std::uint8_t* data;
  std::int64_t blocks;
  KvFormat format;
};

}  // namespace dsa
