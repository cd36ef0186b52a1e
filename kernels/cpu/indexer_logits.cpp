//   score[t, s] = k_scale[s] * sum over h of weight[t, h] * max(q[t, h] . k[s], 0)
//
// A tile of rows and a block of keys at a time; a lane per key, so that no sum crosses lanes.
#include "kernels/ops/indexer_logits.h"

#include "common/check.h"
#include "kernels/cpu/attention_scratch.h"
#include "kernels/cpu/cache_access.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/tiles.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr int kVectors = kTokensPerBlock / kLanes;  // of a block's keys; as many sums under way
constexpr int kProductChunk = 32;  // products summed before the sum goes to the total

// Up to kIndexerRows consecutive rows of one sequence.
struct RowTile {
  std::int64_t first;
  std::int64_t last;    // one past the end
  std::int64_t blocks;  // that its rows see
};

// A sequence's rows in as few tiles as hold them, of equal size, so that threads get equal shares.
RowTile TileAt(const PagedRows& rows, std::int64_t first) {
  const std::int32_t sequence = rows.sequences.data[first];
  std::int64_t end = first + 1;
  while (end < rows.sequences.size && rows.sequences.data[end] == sequence) {
    ++end;
  }
  const std::int64_t tiles = (end - first + kIndexerRows - 1) / kIndexerRows;
  RowTile tile = {.first = first, .last = first + (end - first + tiles - 1) / tiles, .blocks = 0};
  for (std::int64_t row = first; row < tile.last; ++row) {
    tile.blocks =
        std::max(tile.blocks, std::int64_t{rows.positions.data[row]} / kTokensPerBlock + 1);
  }
  return tile;
}

// The keys of a block with the token as the fast dimension, [128][64], so that a vector holds one
// value of eight keys and the sum over heads needs no shuffles.
struct KeyBlock {
  float* values;
  float scales[kTokensPerBlock];
};

void ReadBlock(const IndexerCacheView& cache, std::int64_t block, KeyBlock& keys) {
  for (std::int64_t first = 0; first < kTokensPerBlock; first += kLanes) {
    float rows[kLanes][kIndexerValues];
    for (std::int64_t i = 0; i < kLanes; ++i) {
      const std::int64_t slot = block * kTokensPerBlock + first + i;
      keys.scales[first + i] = cpu::ReadIndexerKey(cache, slot, rows[i]);
    }
    for (std::int64_t d = 0; d < kIndexerValues; d += kLanes) {
      Transpose8(rows[0] + d, kIndexerValues, keys.values + d * kTokensPerBlock + first,
                 kTokensPerBlock);
    }
  }
}

// score[0 .. 63] += weight * max(q . k, 0) for one head.
void AddHead(const float* query, float weight, const float* keys, float* score) {
  using KeyTile = cpu::Tile<F32x8, kVectors, 1>;
  KeyTile dots;
  dots.Clear();
  for (std::int64_t first = 0; first < kIndexerValues; first += kProductChunk) {
    KeyTile sum;
    sum.Clear();
    for (std::int64_t d = first; d < first + kProductChunk; ++d) {
      const float* const values = keys + d * kTokensPerBlock;
      sum.AddProducts([&](std::int64_t v) { return Load8(values + v * kLanes); },
                      [&](std::int64_t) { return F32x8::All(query[d]); });
    }
    dots.Add(sum);
  }
  dots.ForEach([&](std::int64_t v, std::int64_t, F32x8 dot) {
    // The maximum returns its second operand for NaN, which so reaches the score.
    const F32x8 active = {_mm256_max_ps(_mm256_setzero_ps(), dot.lanes)};
    Store8(score + v * kLanes, MultiplyAdd(F32x8::All(weight), active, Load8(score + v * kLanes)));
  });
}

// Scores of the block's first keys, as many as `scores` has room for, for one row.
void ScoreRow(const float* queries, const Vector<const float>& weights, const KeyBlock& keys,
              const Vector<float>& scores) {
  float sums[kTokensPerBlock] = {};
  for (std::int64_t head = 0; head < weights.size; ++head) {
    AddHead(queries + head * kIndexerValues, weights.data[head], keys.values, sums);
  }
  for (std::int64_t i = 0; i < kTokensPerBlock; i += kLanes) {
    Store8(sums + i, Load8(sums + i) * Load8(keys.scales + i));
  }
  std::copy_n(sums, scores.size, scores.data);
}

void LoadQueries(const ConstAnyTensor3& source, const RowTile& tile, float* queries) {
  for (std::int64_t row = tile.first; row < tile.last; ++row) {
    for (std::int64_t head = 0; head < source.heads; ++head) {
      LoadRow(Offset(source.data, source.type, row * source.row_stride + head * source.head_stride),
              source.type, kIndexerValues, queries);
      queries += kIndexerValues;
    }
  }
}

// Scores of one block of keys for the rows of a tile.
void ScoreBlock(const IndexerLogitsParams& params, const RowTile& tile, std::int64_t block,
                const AttentionScratch& scratch) {
  const std::int64_t first_position = block * kTokensPerBlock;
  const std::int64_t slot = cpu::SlotOf("IndexerLogits", params.rows, tile.first, first_position);
  KeyBlock keys = {.values = scratch.index_keys.data(), .scales = {}};
  ReadBlock(params.cache, slot / kTokensPerBlock, keys);
  const std::int64_t heads = params.queries.heads;
  for (std::int64_t row = tile.first; row < tile.last; ++row) {
    const std::int64_t position = params.rows.positions.data[row];
    DSA_CHECK(position >= 0 && position < params.scores.cols,
              "IndexerLogits: row {} at position {}, scores have {} columns", row, position,
              params.scores.cols);
    const std::int64_t count =
        std::min<std::int64_t>(kTokensPerBlock, position + 1 - first_position);
    if (count > 0) {
      ScoreRow(scratch.index_queries.data() + (row - tile.first) * heads * kIndexerValues,
               {.data = params.weights.Row(row), .size = heads}, keys,
               {.data = params.scores.Row(row) + first_position, .size = count});
    }
  }
}

}  // namespace

// Threads share the pairs of a tile of rows and a block of keys: even for one row of a long context
// and for a long prompt, where later rows see more.
void CpuBackend::Compute(const IndexerLogitsParams& params) {
  const IndexerLogitsExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  DSA_CHECK(extents.heads <= ScratchFor(extents.tokens).attention.front().index_heads_max,
            "IndexerLogits: H={}, scratch is for {}", extents.heads,
            ScratchFor(extents.tokens).attention.front().index_heads_max);
  std::int64_t pairs = 0;
  for (std::int64_t row = 0; row < extents.tokens;) {
    const RowTile tile = TileAt(params.rows, row);
    pairs += tile.blocks;
    row = tile.last;
  }
  pool_.ParallelFor(pairs, Shares::kMany, [&](std::int64_t first, std::int64_t last, int thread) {
    const AttentionScratch& scratch =
        ScratchFor(extents.tokens).attention[static_cast<std::size_t>(thread)];
    std::int64_t pair = 0;  // the tile's first
    for (std::int64_t row = 0; row < extents.tokens && pair < last;) {
      const RowTile tile = TileAt(params.rows, row);
      const std::int64_t begin = std::max(first, pair);
      const std::int64_t end = std::min(last, pair + tile.blocks);
      if (begin < end) {
        LoadQueries(params.queries, tile, scratch.index_queries.data());
      }
      for (std::int64_t i = begin; i < end; ++i) {
        ScoreBlock(params, tile, i - pair, scratch);
      }
      pair += tile.blocks;
      row = tile.last;
    }
  });
}

}  // namespace dsa
