// IndexerLogits of the fp8 format: a warpgroup scores 64 keys of one row, a block of the cache, at
// a time, on the fp8 tensor cores.
//
//   A   keys     [64, 128]      in registers, straight from the cache
//   B   queries  [128, 8 heads] in shared memory once a block, a tile of heads after the other
//   D   products [64, 8] f32    ReLU, times the head's weight, added up at once
//
// What a product and a sum are stands in index_products.cuh, for SelectKeys as well: a score's bits
// depend on its key and query alone.
//
// Reads 132 bytes a key and row and does 16384 operations for 64 heads: near memory-bound.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/index_products.cuh"
#include "kernels/cuda/indexer_logits.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTileHeads = 8;
constexpr int kHeadWords = static_cast<int>(kIndexerValues) / 4;
constexpr int kHeadsMultiple = 16;  // of the weights in shared memory
constexpr int kTurnsMax = 16;       // of a block, which stages the queries once
constexpr std::int64_t kTurnsWanted =
    6 * kMultiprocessors;  // over all blocks, before they are given more

constexpr int PaddedHeads(int heads) {
  return (heads + kHeadsMultiple - 1) / kHeadsMultiple * kHeadsMultiple;
}

// The queries and halved weights of a row as the products want them, 0 for heads that fill up.
__device__ void StageQueries(const IndexerLogitsParams& p, std::int64_t row, std::uint8_t* queries,
                             float* weights) {
  const int heads = static_cast<int>(p.queries.heads);
  for (int i = static_cast<int>(threadIdx.x); i < PaddedHeads(heads) * kHeadWords; i += kThreads) {
    const int head = i / kHeadWords;
    Pack<std::uint8_t, 4> codes{};
    if (head < heads) {
      codes = LoadPack<4>(static_cast<const std::uint8_t*>(p.queries.data) +
                          row * p.queries.row_stride + head * p.queries.head_stride +
                          i % kHeadWords * 4);
    }
    StorePack(queries + QueryPlace(head, i % kHeadWords), codes);
  }
  for (int head = static_cast<int>(threadIdx.x); head < PaddedHeads(heads); head += kThreads) {
    weights[WeightPlace(head)] = head < heads ? p.weights.Row(row)[head] * 0.5F : 0.0F;
  }
  ptx::AsyncProxyFence();
}

// The score, before its scale, of the thread's first key in even lanes, of its second in odd ones.
__device__ float Score(const IndexKeys& keys, int heads, unsigned queries, const float* weights,
                       int lane) {
  float of_keys[2] = {};
  for (int first = 0; first < heads; first += kTileHeads) {
    float products[kTileHeads / 2];
    MultiplyIndexKeys<kTileHeads>(keys, queries + first * static_cast<int>(kIndexerValues),
                                  products);
    const float2 weight =
        *reinterpret_cast<const float2*>(weights + WeightPlace(first) + lane % 4 * 4);
    AddHeads(weight.x, weight.y, products, of_keys);
  }
  const float sum = SumOfPair(of_keys, lane);
  return sum + __shfl_xor_sync(kAllLanes, sum, 2);
}

__global__ __launch_bounds__(kThreads) void IndexerLogitsFp8Kernel(
    const __grid_constant__ IndexerLogitsParams p, int turns) {
  extern __shared__ __align__(1024) std::uint8_t queries[];  // then the weights
  const int heads = static_cast<int>(p.queries.heads);
  auto* weights = reinterpret_cast<float*>(queries + PaddedHeads(heads) * kIndexerValues);
  const std::int64_t row = blockIdx.y;
  const std::int64_t visible = p.rows.positions.data[row] + std::int64_t{1};
  std::int64_t block = blockIdx.x * std::int64_t{turns};
  if (block * kTokensPerBlock >= visible) {
    return;
  }
  StageQueries(p, row, queries, weights);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int first = FirstKey(static_cast<int>(threadIdx.x));
  const std::int32_t* block_table = p.rows.block_tables.Row(p.rows.sequences.data[row]);
  for (int turn = 0; turn < turns && block * kTokensPerBlock < visible; ++turn, ++block) {
    // Behind the last visible key the block is read as well: it exists.
    const std::uint8_t* from =
        p.cache.data + std::int64_t{block_table[block]} * IndexerBlock::kBytes;
    IndexKeys keys;
    LoadIndexKeys(from, first, lane, keys);
    const int token = first + lane % 2 * 8;
    const float scale = *reinterpret_cast<const float*>(from + IndexerBlock::Scale(token));
    const float score = Score(keys, heads, ptx::SharedAddress(queries), weights, lane) * scale;
    const std::int64_t key = block * kTokensPerBlock + token;
    if (lane % 4 < 2 && key < visible) {
      p.scores.Row(row)[key] = score;
    }
    __syncwarp();
  }
}

}  // namespace

void IndexerLogitsFp8(const IndexerLogitsParams& params, cudaStream_t stream) {
  const int shared_bytes =
      PaddedHeads(static_cast<int>(params.queries.heads)) * (static_cast<int>(kIndexerValues) + 4);
  constexpr int kSharedBytesMax = 200 * 1024;  // of 227 a block may have on sm_90
  DSA_CHECK(shared_bytes <= kSharedBytesMax, "IndexerLogits: H={} is too many",
            params.queries.heads);
  DSA_CUDA_CHECK(cudaFuncSetAttribute(
      IndexerLogitsFp8Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytesMax));
  const std::int64_t row_turns = (params.scores.cols + kTokensPerBlock - 1) / kTokensPerBlock;
  const auto turns = static_cast<int>(
      std::clamp<std::int64_t>(row_turns * params.queries.rows / kTurnsWanted, 1, kTurnsMax));
  const dim3 grid(static_cast<unsigned>((row_turns + turns - 1) / turns),
                  static_cast<unsigned>(params.queries.rows));
  IndexerLogitsFp8Kernel<<<grid, kThreads, shared_bytes, stream>>>(params, turns);
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa::cuda
