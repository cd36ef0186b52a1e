// Scores of a tile of rows against the fp8 indexer cache, and a histogram of each row's scores:
// the first half of SelectKeys.
#pragma once

#include "common/view.h"
#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

inline constexpr std::int64_t kIndexScoreRowsMax = 2048;
inline constexpr std::int64_t kIndexScoreHeadsMax = 64;

inline constexpr int kScoreBins = 2048;  // of a histogram: score_order.cuh
// The work memory of a tile of rows, in int32: of each row its bins and whether a score is NaN;
// behind all rows the number of pieces that were handed out.
inline constexpr int kNanFlag = kScoreBins;
inline constexpr int kRowWorkInts = kScoreBins + 32;
constexpr std::int64_t ScoreWorkInts(std::int64_t rows) {
  return rows * kRowWorkInts + 32;
}

// A product takes so many heads; further ones have queries and weights of 0.
constexpr int PaddedIndexHeads(std::int64_t heads) {
  return heads <= 16 ? 16 : (heads <= 32 ? 32 : 64);
}

// A row's queries as the tensor cores read them, 128 bytes a head, and its weights, halved, in the
// order of index_products.cuh.
constexpr int PreparedQueryBytes(int padded_heads) {
  return padded_heads * static_cast<int>(kIndexerValues);
}

struct RotateAndAbsorbParams;

struct IndexScoresParams {
  const std::uint8_t* queries;  // [T, PreparedQueryBytes]
  const float* weights;         // [T, padded heads]
  int padded_heads;
  IndexerCacheView cache;  // fp8
  PagedRows rows;          // [T]  T in [1, kIndexScoreRowsMax]
  // Rows of a sequence at consecutive positions meet a key together, at most so many.
  int unit_rows;  // in [1, kRowGroupMax]
  std::int64_t k;
  Matrix<float> scores;  // [T, C]  written for visible keys
  std::int32_t* work;    // [ScoreWorkInts(T)]  0 before.  Rows that see more than k keys: their
                         // histogram is added; rows with a NaN: their flag is set
};

// Tables and the cache are read before the kernel ahead has ended, `queries`, `weights` and `work`
// after: the kernel ahead starts only when all that was written into tables and cache can be read.
void IndexScores(const IndexScoresParams& params, cudaStream_t stream);
// The same of 9 to 32 rows, each a unit, and beside it RotateAndAbsorb of those rows, whose
// operands are read before the kernel ahead has ended as well.
bool TakesIndexScoresAndAbsorb(const IndexScoresParams& params,
                               const RotateAndAbsorbParams& absorbed);
void IndexScoresAndAbsorb(const IndexScoresParams& params, const RotateAndAbsorbParams& absorbed,
                          cudaStream_t stream);

}  // namespace dsa::cuda
