// PrepareIndexQueries and RotateAndAbsorb of few rows in one launch: what the indexer and attention
// make of the same product's output, before either has seen a key.
//
// A block has a tile of attention's queries, whose weights it asks for before the kernels ahead
// have ended, and each of its warps a head of a row for the indexer, while the tile's queries come.
// What heads are left over have blocks of their own behind the tiles.
#include "kernels/cuda/absorb_tile.cuh"
#include "kernels/cuda/attend_latent.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/index_queries.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/per_device.h"

#include <algorithm>

namespace dsa::cuda {
namespace {

constexpr int kThreads = absorb::kThreads;
static_assert(kThreads == index_queries::kThreads);

struct Tiles {
  int count;
  int of_tokens;
};

// Blocks a multiprocessor: 128 heads are 512 tiles, which all run at once.
constexpr int kBlocks = 4;

template <int kTokens>
__global__ __launch_bounds__(kThreads, kBlocks) void PrepareAndAbsorbKernel(
    const __grid_constant__ index_queries::KernelParams index,
    const __grid_constant__ AbsorbQueryParams absorbed, const __grid_constant__ RopeParams rope,
    Tiles tiles) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  const auto block = static_cast<int>(blockIdx.x);
  const bool absorbs = block < tiles.count;
  const auto at = absorb::Place::Of(block, tiles.of_tokens, kTokens);
  if (absorbs) {
    absorb::LoadFirstWeights<kTokens>(absorbed, at, shared);
  }
  ptx::WaitForPredecessors();
  ptx::AllowSuccessor();  // not earlier: IndexScores relies on it
  if (absorbs) {
    absorb::LoadFirstQueries<kTokens>(absorbed, at, shared);
    absorb::Rotation<kTokens>(rope, at.column_tile, at.first_token, at.head,
                              static_cast<int>(threadIdx.x))
        .Store();
  }
  index_queries::PrepareHeads<__nv_bfloat16, kWarpSize>(
      index, block * std::int64_t{index_queries::kWarps} + threadIdx.x / kWarpSize);
  if (absorbs) {
    absorb::Finish<kTokens>(absorbed, at, shared, absorb::NoRotation{});
  }
}

template <int kTokens>
void Launch(const IndexQueriesParams& index, const RotateAndAbsorbParams& queries,
            cudaStream_t stream) {
  const auto kernel = PrepareAndAbsorbKernel<kTokens>;
  constexpr int kSharedBytes = absorb::Tile<kTokens>::kSharedBytes;
  static PerDevice attribute;
  attribute.Once([&] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  });
  const ConstAnyTensor3& q = queries.absorb.q_nope;
  Tiles tiles{.count = 0, .of_tokens = static_cast<int>((q.rows + kTokens - 1) / kTokens)};
  tiles.count = absorb::kColumnTiles * tiles.of_tokens * static_cast<int>(q.heads);
  LaunchDependent(kernel,
                  {.grid = std::max(static_cast<unsigned>(tiles.count),
                                    index_queries::BlocksOf(index, kWarpSize)),
                   .threads = kThreads,
                   .shared_bytes = kSharedBytes},
                  stream, index_queries::ParamsOf(index), queries.absorb, queries.rope, tiles);
}

}  // namespace

bool PrepareIndexQueriesAndAbsorb(const IndexQueriesParams& index,
                                  const RotateAndAbsorbParams& queries, cudaStream_t stream) {
  constexpr std::int64_t kRowsMax = 2 * kMultiprocessors;  // of which a head has a warp
  constexpr std::int64_t kFew = 8;
  const std::int64_t rows = queries.absorb.q_nope.rows;
  if (rows > kRowsMax || index.q.type != DataType::kBf16 || !TakesRotateAndAbsorb(queries)) {
    return false;
  }
  rows <= kFew ? Launch<8>(index, queries, stream) : Launch<64>(index, queries, stream);
  return true;
}

}  // namespace dsa::cuda
