// IndexSelection of few rows in the first blocks of a launch, RotateAndAbsorb in the others.
#include "kernels/cuda/absorb_beside.cuh"
#include "kernels/cuda/index_selection.cuh"

#include <algorithm>

namespace dsa::cuda::index_selection {
namespace {

constexpr int kFew = 8;  // rows of a tile
constexpr int kMany = 64;
constexpr int kRing = 4;  // stages of a team

template <int kTokens>
__global__ __launch_bounds__(Wide::kThreads, Wide::kBlocks) void IndexSelectionAndAbsorbKernel(
    const __grid_constant__ KernelParams p, const __grid_constant__ RotateAndAbsorbParams queries) {
  static_assert(Wide::kThreads == absorb::kTeams * absorb::kThreads);
  extern __shared__ __align__(16) std::uint8_t memory[];
  const int selecting = static_cast<int>(p.call.scores.rows) * p.cluster;
  const auto block = static_cast<int>(blockIdx.x);
  if (block < selecting) {
    Selection<Wide>(p, *reinterpret_cast<Shared<Wide>*>(memory)).Run(p);
  } else {
    using Team = absorb::Beside<kTokens, kRing>;
    const auto thread = static_cast<int>(threadIdx.x);
    const int team = thread / absorb::kThreads;
    Team(queries, memory + team * Team::kSharedBytes, thread % absorb::kThreads, 1 + team,
         (block - selecting) * absorb::kTeams + team,
         (static_cast<int>(gridDim.x) - selecting) * absorb::kTeams)
        .template Run<true>();
  }
}

template <int kTokens>
void Launch(const KernelParams& p, const RotateAndAbsorbParams& queries, int blocks,
            cudaStream_t stream) {
  const auto kernel = IndexSelectionAndAbsorbKernel<kTokens>;
  AllowClusters<IndexSelectionAndAbsorbKernel<kTokens>>();
  const auto cluster = static_cast<unsigned>(p.cluster);
  LaunchDependent(
      kernel,
      {.grid = static_cast<unsigned>(p.call.scores.rows) * cluster + static_cast<unsigned>(blocks),
       .threads = Wide::kThreads,
       .shared_bytes = std::max<std::int64_t>(
           SharedBytes<Wide>(p), absorb::kTeams * absorb::Beside<kTokens, kRing>::kSharedBytes),
       .cluster = cluster},
      stream, p, queries);
}

}  // namespace

std::int64_t AbsorbBlocks(const RotateAndAbsorbParams& queries) {
  const ConstAnyTensor3& q = queries.absorb.q_nope;
  const std::int64_t rows = q.rows <= kFew ? kFew : kMany;
  const std::int64_t tiles = absorb::kColumnTiles * ((q.rows + rows - 1) / rows) * q.heads;
  return (tiles + absorb::kTeams - 1) / absorb::kTeams;
}

void LaunchBeside(const KernelParams& p, const RotateAndAbsorbParams& queries, int blocks,
                  cudaStream_t stream) {
  queries.absorb.q_nope.rows <= kFew ? Launch<kFew>(p, queries, blocks, stream)
                                     : Launch<kMany>(p, queries, blocks, stream);
}

}  // namespace dsa::cuda::index_selection
