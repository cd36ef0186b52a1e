// IndexScores of few rows: index_scores_few.cuh has what blocks do.
#include "kernels/cuda/index_scores_few.cuh"

namespace dsa::cuda::index_scores {

void LaunchFew(const IndexScoresParams& params, cudaStream_t stream) {
  switch (params.padded_heads) {
    case 16: Launch<16, 0>(params, {}, stream); return;
    case 32: Launch<32, 0>(params, {}, stream); return;
    case 64: Launch<64, 0>(params, {}, stream); return;
    default: DSA_CHECK(false, "IndexScores: {} heads", params.padded_heads);
  }
}

}  // namespace dsa::cuda::index_scores
