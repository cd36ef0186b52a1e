#include "kernels/ops/indexer_logits.h"

#include "common/check.h"
#include "kernels/cpu/attention_scratch.h"
#include "kernels/cpu/cache_access.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr int kStripKeys = 16;     // keys of one register tile
constexpr int kStripHeads = 4;     // heads of one register tile
constexpr int kProductChunk = 32;  // products summed before the sum goes to the total

// Up to kIndexerRows consecutive rows of one sequence.
struct RowTile {
  std::int64_t first;
  std::int64_t last;    // one past the end
  std::int64_t blocks;  // that its rows see
};

RowTile TileAt(const PagedRows& rows, std::int64_t first) {
  RowTile tile = {.first = first, .last = first, .blocks = 0};
  const std::int32_t sequence = rows.sequences.data[first];
  while (tile.last < rows.sequences.size && tile.last < first + kIndexerRows &&
         rows.sequences.data[tile.last] == sequence) {
    const std::int64_t position = rows.positions.data[tile.last++];
    tile.blocks = std::max(tile.blocks, position / kTokensPerBlock + 1);
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
  for (int token = 0; token < kTokensPerBlock; ++token) {
    float key[kIndexerValues];
    keys.scales[token] = cpu::ReadIndexerKey(cache, block * kTokensPerBlock + token, key);
    for (int d = 0; d < kIndexerValues; ++d) {
      keys.values[d * kTokensPerBlock + token] = key[d];
    }
  }
}

// score[0 .. 15] += sum over kHeads heads of weight * max(q . k, 0).
template <int kHeads>
void AddHeads(const float* queries, const float* weights, const float* keys, F32x8 (&score)[2]) {
  F32x8 dots[kHeads][2];
#pragma GCC unroll 8
  for (std::int64_t h = 0; h < kHeads; ++h) {
    dots[h][0] = F32x8::Zero();
    dots[h][1] = F32x8::Zero();
  }
  for (std::int64_t first = 0; first < kIndexerValues; first += kProductChunk) {
    F32x8 sum[kHeads][2];
#pragma GCC unroll 8
    for (std::int64_t h = 0; h < kHeads; ++h) {
      sum[h][0] = F32x8::Zero();
      sum[h][1] = F32x8::Zero();
    }
    for (std::int64_t d = first; d < first + kProductChunk; ++d) {
      const F32x8 low = Load8(keys + d * kTokensPerBlock);
      const F32x8 high = Load8(keys + d * kTokensPerBlock + kLanes);
#pragma GCC unroll 8
      for (std::int64_t h = 0; h < kHeads; ++h) {
        const F32x8 query = F32x8::All(queries[h * kIndexerValues + d]);
        sum[h][0] = MultiplyAdd(query, low, sum[h][0]);
        sum[h][1] = MultiplyAdd(query, high, sum[h][1]);
      }
    }
#pragma GCC unroll 8
    for (std::int64_t h = 0; h < kHeads; ++h) {
      dots[h][0] = dots[h][0] + sum[h][0];
      dots[h][1] = dots[h][1] + sum[h][1];
    }
  }
#pragma GCC unroll 8
  for (std::int64_t h = 0; h < kHeads; ++h) {
    const F32x8 weight = F32x8::All(weights[h]);
    for (int v = 0; v < 2; ++v) {
      // The maximum returns its second operand for NaN, which so reaches the score.
      const F32x8 active = {_mm256_max_ps(_mm256_setzero_ps(), dots[h][v].lanes)};
      score[v] = MultiplyAdd(weight, active, score[v]);
    }
  }
}

// Scores of the block's first keys, as many as `scores` has room for, for one row.
void ScoreRow(const float* queries, const Vector<const float>& weights, const KeyBlock& keys,
              const Vector<float>& scores) {
  for (std::int64_t strip = 0; strip < scores.size; strip += kStripKeys) {
    F32x8 score[2] = {F32x8::Zero(), F32x8::Zero()};
    const float* const values = keys.values + strip;
    std::int64_t head = 0;
    for (; head + kStripHeads <= weights.size; head += kStripHeads) {
      AddHeads<kStripHeads>(queries + head * kIndexerValues, weights.data + head, values, score);
    }
    for (; head < weights.size; ++head) {
      AddHeads<1>(queries + head * kIndexerValues, weights.data + head, values, score);
    }
    float scaled[kStripKeys];
    Store8(scaled, score[0] * Load8(keys.scales + strip));
    Store8(scaled + kLanes, score[1] * Load8(keys.scales + strip + kLanes));
    std::copy_n(scaled, std::min<std::int64_t>(kStripKeys, scores.size - strip),
                scores.data + strip);
  }
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
  pool_.ParallelFor(pairs, [&](std::int64_t first, std::int64_t last, int thread) {
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
