#include "kernels/cpu/cache_access.h"

#include "common/check.h"
#include "kernels/cpu/prefetch.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"

#include <cmath>
#include <cstring>

namespace dsa::cpu {
namespace {

constexpr DataType ElementType(KvFormat format) {
  return format == KvFormat::kF32 ? DataType::kF32 : DataType::kBf16;
}

// Where a token's record lies.
struct Record {
  std::uint8_t* block;  // first byte
  int token;            // place in the block
};

template <typename CacheView>
Record RecordOf(const char* op, const CacheView& cache, std::int64_t slot,
                std::int64_t token_bytes) {
  DSA_CHECK(slot >= 0 && slot < cache.blocks * kTokensPerBlock, "{}: slot {} of a cache of {}", op,
            slot, cache.blocks * kTokensPerBlock);
  return {.block = cache.data + slot / kTokensPerBlock * kTokensPerBlock * token_bytes,
          .token = static_cast<int>(slot % kTokensPerBlock)};
}

}  // namespace

std::int64_t SlotOf(const char* op, const PagedRows& rows, std::int64_t row,
                    std::int64_t position) {
  const std::int64_t sequence = rows.sequences.data[row];
  const std::int64_t index = position / kTokensPerBlock;
  DSA_CHECK(sequence >= 0 && sequence < rows.block_tables.rows, "{}: sequence {} of {}", op,
            sequence, rows.block_tables.rows);
  DSA_CHECK(position >= 0 && index < rows.block_tables.cols,
            "{}: position {} in a block table of {} blocks", op, position, rows.block_tables.cols);
  const std::int64_t block = rows.block_tables.Row(sequence)[index];
  return block * kTokensPerBlock + position % kTokensPerBlock;
}

std::int64_t VisibleKeys(const char* op, const PagedRows& rows, std::int64_t row) {
  const std::int64_t position = rows.positions.data[row];
  DSA_CHECK(position >= 0, "{}: row {} at position {}", op, row, position);
  return position + 1;
}

void CheckGroups(const char* op, const PagedRows& rows) {
  for (std::int64_t row = 0; row < rows.positions.size; ++row) {
    const std::int64_t position = rows.positions.data[row];
    DSA_CHECK(rows.visible_max == 0 || position < rows.visible_max,
              "{}: row {} at position {}, visible_max={}", op, row, position, rows.visible_max);
    DSA_CHECK(row % rows.group == 0 || (rows.sequences.data[row] == rows.sequences.data[row - 1] &&
                                        position == std::int64_t{rows.positions.data[row - 1]} + 1),
              "{}: row {} does not follow the row before it, in groups of {}", op, row, rows.group);
  }
}

float QuantizeBlock(const float* values, std::int64_t count, std::uint8_t* codes) {
  float amax = 0.0F;
  for (std::int64_t i = 0; i < count; ++i) {
    amax = std::fmax(amax, std::fabs(values[i]));
  }
  const float scale = Fp8BlockScale(amax, ScaleFormat::kPowerOfTwo);
  for (std::int64_t i = 0; i < count; ++i) {
    codes[i] = ToFp8E4m3(values[i] / scale).bits;
  }
  return scale;
}

void WriteLatent(const LatentCacheView& cache, std::int64_t slot, const float* values) {
  const auto [block, token] = RecordOf("WriteLatent", cache, slot, LatentTokenBytes(cache.format));
  if (cache.format != KvFormat::kFp8) {
    const std::int64_t bytes = LatentTokenBytes(cache.format);
    StoreRow(values, kLatentRecordValues, block + token * bytes, ElementType(cache.format));
    return;
  }
  for (std::int64_t i = 0; i < LatentBlock::kScales; ++i) {
    const float scale = QuantizeBlock(values + i * kValuesPerScale, kValuesPerScale,
                                      block + LatentBlock::Values(token) + i * kValuesPerScale);
    std::memcpy(block + LatentBlock::Scales(token) + i * 4, &scale, sizeof(scale));
  }
  StoreRow(values + kLatentValues, kLatentRopeValues, block + LatentBlock::Rope(token),
           DataType::kBf16);
}

void ReadLatent(const LatentCacheView& cache, std::int64_t slot, float* values) {
  const auto [block, token] = RecordOf("ReadLatent", cache, slot, LatentTokenBytes(cache.format));
  if (cache.format != KvFormat::kFp8) {
    const std::int64_t bytes = LatentTokenBytes(cache.format);
    LoadRow(block + token * bytes, ElementType(cache.format), kLatentRecordValues, values);
    return;
  }
  const auto* codes = reinterpret_cast<const Fp8E4m3*>(block + LatentBlock::Values(token));
  for (std::int64_t i = 0; i < LatentBlock::kScales; ++i) {
    float scale = 0.0F;
    std::memcpy(&scale, block + LatentBlock::Scales(token) + i * 4, sizeof(scale));
    const F32x8 factor = F32x8::All(scale);
    for (std::int64_t j = i * kValuesPerScale; j < (i + 1) * kValuesPerScale; j += 2 * kLanes) {
      const auto [low, high] = Load16(codes + j);
      Store8(values + j, low * factor);
      Store8(values + j + kLanes, high * factor);
    }
  }
  LoadRow(block + LatentBlock::Rope(token), DataType::kBf16, kLatentRopeValues,
          values + kLatentValues);
}

// Records of a format lie one after another.
void PrefetchLatent(const LatentCacheView& cache, std::int64_t slot) {
  const std::int64_t bytes = LatentTokenBytes(cache.format);
  PrefetchBytes(cache.data + slot * bytes, bytes);
}

void WriteIndexerKey(const IndexerCacheView& cache, std::int64_t slot, const float* values) {
  const auto [block, token] =
      RecordOf("WriteIndexerKey", cache, slot, IndexerTokenBytes(cache.format));
  if (cache.format != KvFormat::kFp8) {
    const std::int64_t bytes = IndexerTokenBytes(cache.format);
    StoreRow(values, kIndexerValues, block + token * bytes, ElementType(cache.format));
    return;
  }
  const float scale = QuantizeBlock(values, kIndexerValues, block + IndexerBlock::Values(token));
  std::memcpy(block + IndexerBlock::Scale(token), &scale, sizeof(scale));
}

float ReadIndexerKey(const IndexerCacheView& cache, std::int64_t slot, float* values) {
  const auto [block, token] =
      RecordOf("ReadIndexerKey", cache, slot, IndexerTokenBytes(cache.format));
  if (cache.format != KvFormat::kFp8) {
    const std::int64_t bytes = IndexerTokenBytes(cache.format);
    LoadRow(block + token * bytes, ElementType(cache.format), kIndexerValues, values);
    return 1.0F;
  }
  LoadRow(block + IndexerBlock::Values(token), DataType::kFp8E4m3, kIndexerValues, values);
  float scale = 0.0F;
  std::memcpy(&scale, block + IndexerBlock::Scale(token), sizeof(scale));
  return scale;
}

}  // namespace dsa::cpu
