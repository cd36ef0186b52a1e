// IndexerLogits of the fp8 format on the tensor cores: a warp scores 32 keys of one row at a time.
//
//   A   keys     [32 tokens, 128]   two tiles of 16 rows, converted to half in registers
//   B   queries  [128, 8 heads]     converted to half in shared memory once a block, a tile of
//                                   heads after the other: 2 KB each
//   C   products [32, 8] f32        ReLU, times the head's weight, added up at once
//
// Every e4m3 value is exact in half, and so is every product in float32.  The order of the columns
// in a product is free if both operands have the same, so a lane takes 16 adjacent bytes of a row:
//
//   lane 4 g + q    rows g and g + 8, columns 16 q .. 16 q + 15 of each half of 64
//   step s of 8     4 columns a lane, from 64 (s / 4) + 16 q + 4 (s % 4) on
//
// Reads 132 bytes a key and row and does 16384 operations for 64 heads: near memory-bound.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/indexer_logits.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kWarpKeys = 32;
constexpr int kTurnKeys = kWarps * kWarpKeys;
constexpr int kTileHeads = 8;
constexpr int kTileWords = 4 * kWarpSize;  // 16-byte words of a tile of heads in shared memory
constexpr int kTurnsMax = 16;              // of a block, which converts the queries once
constexpr std::int64_t kTurnsWanted =
    6 * kMultiprocessors;   // over all blocks, before they are given more
constexpr int kRows = 4;    // of a lane: g, g + 8, g + 16, g + 24
constexpr int kHalves = 2;  // of a row: columns below 64, and the others

// A lane's bytes of its four rows, and the scale of the key whose score it will write.
struct RawKeys {
  uint4 bytes[kRows][kHalves];
  float scale;
};

// The row of a warp's 32 that a lane writes: lane 4 g + q has row g + 8 q.
__device__ int WrittenRow(int lane) {
  return lane / 4 + lane % 4 * 8;
}

// `first_key`, a multiple of 32, is visible; what lies behind the last visible one is read as well,
// since its block exists.
__device__ RawKeys LoadKeys(const IndexerLogitsParams& p, const std::int32_t* block_table,
                            std::int64_t first_key, int lane) {
  const std::uint8_t* block =
      p.cache.data + std::int64_t{block_table[first_key / kTokensPerBlock]} * IndexerBlock::kBytes;
  const int first_token = static_cast<int>(first_key % kTokensPerBlock);
  RawKeys keys;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int token = first_token + lane / 4 + row * 8;
    const auto* values = reinterpret_cast<const uint4*>(block + IndexerBlock::Values(token));
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      keys.bytes[row][half] = values[half * 4 + lane % 4];
    }
  }
  keys.scale =
      *reinterpret_cast<const float*>(block + IndexerBlock::Scale(first_token + WrittenRow(lane)));
  return keys;
}

// The queries of a row as the products want them, zeros for heads that fill up the last tile.
__device__ void StageQueries(const IndexerLogitsParams& p, std::int64_t row, int tiles,
                             uint4* queries, float* weights) {
  const int heads = static_cast<int>(p.queries.heads);
  for (int i = static_cast<int>(threadIdx.x); i < tiles * kHalves * kWarpSize; i += kThreads) {
    const int lane = i % kWarpSize;
    const int half = i / kWarpSize % kHalves;
    const int tile = i / (kWarpSize * kHalves);
    const int head = tile * kTileHeads + lane / 4;
    uint4 halves[2] = {};
    if (head < heads) {
      const auto pack = LoadPack<16>(static_cast<const std::uint8_t*>(p.queries.data) +
                                     row * p.queries.row_stride + head * p.queries.head_stride +
                                     half * (kIndexerValues / 2) + lane % 4 * 16);
      unsigned words[4];
      memcpy(words, &pack, sizeof(words));
#pragma unroll
      for (int word = 0; word < 2; ++word) {
        ToHalves(words[2 * word], halves[word].x, halves[word].y);
        ToHalves(words[2 * word + 1], halves[word].z, halves[word].w);
      }
    }
    uint4* to = queries + tile * kTileWords + half * 2 * kWarpSize + lane;
    to[0] = halves[0];
    to[kWarpSize] = halves[1];
  }
  for (int head = static_cast<int>(threadIdx.x); head < tiles * kTileHeads; head += kThreads) {
    weights[head] = head < heads ? p.weights.Row(row)[head] : 0.0F;
  }
}

// Not fmaxf, which would hide a NaN.
__device__ float Relu(float value) {
  return value < 0.0F ? 0.0F : value;
}

// The score of row WrittenRow(lane) of the keys, before their scale.
__device__ float Score(const RawKeys& raw, int tiles, const uint4* queries, const float* weights,
                       int lane) {
  unsigned keys[kRows][kHalves * 8];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const uint4 bytes = raw.bytes[row][half];
      unsigned* to = keys[row] + half * 8;
      ToHalves(bytes.x, to[0], to[1]);
      ToHalves(bytes.y, to[2], to[3]);
      ToHalves(bytes.z, to[4], to[5]);
      ToHalves(bytes.w, to[6], to[7]);
    }
  }
  float sums[kRows] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    float products[kRows / 2][4] = {};
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const uint4 query = queries[tile * kTileWords + word * kWarpSize + lane];
#pragma unroll
      for (int pair = 0; pair < kRows / 2; ++pair) {
        const unsigned* even = keys[2 * pair] + word * 4;  // rows g, or g + 16
        const unsigned* odd = keys[2 * pair + 1] + word * 4;
        ptx::MmaHalf(products[pair], {even[0], odd[0], even[1], odd[1]}, query.x, query.y);
        ptx::MmaHalf(products[pair], {even[2], odd[2], even[3], odd[3]}, query.z, query.w);
      }
    }
    const float2 weight =
        *reinterpret_cast<const float2*>(weights + tile * kTileHeads + lane % 4 * 2);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float* product = products[row / 2] + row % 2 * 2;
      sums[row] = fmaf(weight.x, Relu(product[0]), sums[row]);
      sums[row] = fmaf(weight.y, Relu(product[1]), sums[row]);
    }
  }
  float score = 0.0F;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {  // the heads of the four lanes of a row
    float sum = sums[row];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    score = row == lane % 4 ? sum : score;
  }
  return score;
}

__global__ __launch_bounds__(kThreads) void IndexerLogitsFp8Kernel(
    const __grid_constant__ IndexerLogitsParams p, int tiles, int turns) {
  extern __shared__ uint4 queries[];  // [tiles, 4, 32 lanes], then the weights
  auto* weights = reinterpret_cast<float*>(queries + tiles * kTileWords);
  const std::int64_t row = blockIdx.y;
  const std::int64_t visible = p.rows.positions.data[row] + std::int64_t{1};
  const std::int64_t block_first = blockIdx.x * std::int64_t{kTurnKeys} * turns;
  if (block_first >= visible) {
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int32_t* block_table = p.rows.block_tables.Row(p.rows.sequences.data[row]);
  std::int64_t first = block_first + threadIdx.x / kWarpSize * kWarpKeys;
  const std::int64_t end = min(visible, block_first + std::int64_t{kTurnKeys} * turns);
  RawKeys next;
  if (first < end) {
    next = LoadKeys(p, block_table, first, lane);
  }
  StageQueries(p, row, tiles, queries, weights);
  __syncthreads();
  for (; first < end; first += kTurnKeys) {
    const RawKeys keys = next;
    if (first + kTurnKeys < end) {
      next = LoadKeys(p, block_table, first + kTurnKeys, lane);  // on its way during the products
    }
    const float score = Score(keys, tiles, queries, weights, lane);
    const std::int64_t key = first + WrittenRow(lane);
    if (key < visible) {
      p.scores.Row(row)[key] = score * keys.scale;
    }
  }
}

}  // namespace

void IndexerLogitsFp8(const IndexerLogitsParams& params, cudaStream_t stream) {
  const auto tiles = static_cast<int>((params.queries.heads + kTileHeads - 1) / kTileHeads);
  const int shared_bytes = tiles * (kTileWords * 16 + kTileHeads * 4);
  constexpr int kSharedBytesMax = 200 * 1024;  // of 227 a block may have on sm_90
  DSA_CHECK(shared_bytes <= kSharedBytesMax, "IndexerLogits: H={} is too many",
            params.queries.heads);
  DSA_CUDA_CHECK(cudaFuncSetAttribute(
      IndexerLogitsFp8Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytesMax));
  const std::int64_t row_turns = (params.scores.cols + kTurnKeys - 1) / kTurnKeys;
  const auto turns = static_cast<int>(
      std::clamp<std::int64_t>(row_turns * params.queries.rows / kTurnsWanted, 1, kTurnsMax));
  const dim3 grid(static_cast<unsigned>((row_turns + turns - 1) / turns),
                  static_cast<unsigned>(params.queries.rows));
  IndexerLogitsFp8Kernel<<<grid, kThreads, shared_bytes, stream>>>(params, tiles, turns);
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa::cuda
