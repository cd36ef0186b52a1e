// IndexScores of few rows, and RotateAndAbsorb of the same rows beside it: index_scores_few.cuh.
#include "kernels/cuda/index_scores_few.cuh"

namespace dsa::cuda {

bool TakesIndexScoresAndAbsorb(const IndexScoresParams& params,
                               const RotateAndAbsorbParams& absorbed) {
  // Scores of fewer rows are done before a team has absorbed a second tile; of more, a thread's
  // part of a tile does not fit into its registers.
  constexpr std::int64_t kRowsMin = 9;
  constexpr std::int64_t kRowsMax = 32;
  const std::int64_t rows = params.rows.positions.size;
  return rows >= kRowsMin && rows <= kRowsMax && params.unit_rows == 1 &&
         params.padded_heads == kIndexScoreHeadsMax && TakesRotateAndAbsorb(absorbed);
}

void IndexScoresAndAbsorb(const IndexScoresParams& params, const RotateAndAbsorbParams& absorbed,
                          cudaStream_t stream) {
  const std::int64_t rows = params.rows.positions.size;
  DSA_CHECK(TakesIndexScoresAndAbsorb(params, absorbed), "IndexScoresAndAbsorb: {} rows", rows);
  rows <= 16 ? index_scores::Launch<64, 16>(params, absorbed, stream)
             : index_scores::Launch<64, 32>(params, absorbed, stream);
}

}  // namespace dsa::cuda
