// Tiles of AbsorbQuery on the tensor cores, and the rotation beside them: what its own kernel and
// that of the indexer's queries share.  A tile is 128 latent values of a head for kTokens rows, by
// a block of 256 threads.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/cuda/warp_sums.cuh"
#include "kernels/kv_layout.h"
#include "kernels/ops/absorb_query.h"

#include <algorithm>

namespace dsa::cuda::absorb {

inline constexpr int kThreads = 256;
inline constexpr int kColumns = 128;  // latent values of a tile
inline constexpr int kDepth = 64;     // of N, a stage
inline constexpr int kStages = 2;
inline constexpr int kWeightStride = kColumns * 2 + 16;  // bytes; eight rows meet all banks
inline constexpr int kQueryStride = kDepth * 2 + 16;
inline constexpr int kResultStride = kColumns + 4;  // floats

template <int kTokens>
struct Tile {
  static constexpr int kTokenWarps = kTokens >= 32 ? 2 : 1;
  static constexpr int kColumnTiles = kColumns / (8 / kTokenWarps) / 16;  // of a warp
  static constexpr int kTokenTiles = kTokens / kTokenWarps / 8;
  static constexpr int kStageBytes = kDepth * kWeightStride + kTokens * kQueryStride;
  static constexpr int kSharedBytes = std::max(kStages * kStageBytes, kTokens* kResultStride * 4);

  using Totals = float[kColumnTiles][kTokenTiles][4];

  // Where a warp's part of a tile begins.
  __device__ static int Column(int warp) { return warp / kTokenWarps * kColumnTiles * 16; }
  __device__ static int Token(int warp) { return warp % kTokenWarps * kTokenTiles * 8; }

  // `first_n` of both: where the stage begins in N.
  __device__ static void LoadWeights(std::uint8_t* stage, const AbsorbQueryParams& p, int first_n,
                                     int first_column, std::int64_t head, int thread) {
    const auto* weights =
        static_cast<const __nv_bfloat16*>(p.w_uk.data) + head * p.w_uk.row_stride + first_column;
    const int left = static_cast<int>(p.q_nope.cols) - first_n;
    for (int i = thread; i < kDepth * kColumns / 8; i += kThreads) {
      const int n = i / (kColumns / 8);
      const int chunk = i % (kColumns / 8);
      const bool exists = n < left;
      ptx::CopyAsync16(stage + n * kWeightStride + chunk * 16,
                       weights + (exists ? (first_n + n) * p.w_uk.head_stride + chunk * 8 : 0),
                       exists ? 16 : 0);
    }
  }

  __device__ static void LoadQueries(std::uint8_t* stage, const AbsorbQueryParams& p, int first_n,
                                     std::int64_t first_token, std::int64_t head, int thread) {
    const auto* queries =
        static_cast<const __nv_bfloat16*>(p.q_nope.data) + head * p.q_nope.head_stride + first_n;
    const int left = static_cast<int>(p.q_nope.cols) - first_n;
    for (int i = thread; i < kTokens * kDepth / 8; i += kThreads) {
      const int token = i / (kDepth / 8);
      const int n = i % (kDepth / 8) * 8;
      const bool exists = first_token + token < p.q_nope.rows && n < left;
      ptx::CopyAsync16(
          stage + kDepth * kWeightStride + token * kQueryStride + n * 2,
          exists ? queries + (first_token + token) * p.q_nope.row_stride + n : queries - first_n,
          exists ? min(left - n, 8) * 2 : 0);
    }
  }

  __device__ static void Multiply(const std::uint8_t* stage, int column, int token,
                                  Totals& totals) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const std::uint8_t* queries = stage + kDepth * kWeightStride;
#pragma unroll
    for (int n = 0; n < kDepth; n += 16) {
      unsigned b[kTokenTiles][2];
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        const std::uint8_t* at =
            queries + (token + t * 8 + lane / 4) * kQueryStride + n * 2 + lane % 4 * 4;
        b[t][0] = *reinterpret_cast<const unsigned*>(at);
        b[t][1] = *reinterpret_cast<const unsigned*>(at + 16);
      }
#pragma unroll
      for (int m = 0; m < kColumnTiles; ++m) {
        unsigned a[4];
        ptx::LoadMatricesTransposed(a, stage + (n + lane / 16 * 8 + lane % 8) * kWeightStride +
                                           (column + m * 16 + lane / 8 % 2 * 8) * 2);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          ptx::MmaBf16(totals[m][t], a, b[t][0], b[t][1]);
        }
      }
    }
  }
};

inline constexpr int kColumnTiles = kLatentValues / kColumns;

// What a thread rotates: RoPE columns of a tile of tokens of one head, of which each of the head's
// column tiles takes some.  Read before the products and stored behind them, so that nothing waits.
template <int kTokens>
class Rotation final {
 public:
  __device__ Rotation(const RopeParams& p, int column_tile, std::int64_t first_token,
                      std::int64_t head, int thread)
      : columns_(PairColumns(thread % kPairs, kLatentRopeValues, p.layout)) {
    const int pair = thread % kPairs;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int place = thread / kPairs + i * kAtOnce;
      const std::int64_t token = first_token + place * kColumnTiles + column_tile;
      rows_[i] = nullptr;
      if (place < kTokens / kColumnTiles && token < p.x.rows) {
        rows_[i] =
            static_cast<__nv_bfloat16*>(p.x.data) + token * p.x.row_stride + head * p.x.head_stride;
        const std::int64_t position = p.positions.data[token];
        first_[i] = rows_[i][columns_.first];
        second_[i] = rows_[i][columns_.second];
        cosine_[i] = p.table.cos.Row(position)[pair];
        sine_[i] = p.table.sin.Row(position)[pair];
      }
    }
  }
  __device__ void Store() const {
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      if (rows_[i] != nullptr) {
        float a = __bfloat162float(first_[i]);
        float b = __bfloat162float(second_[i]);
        Rotate(cosine_[i], sine_[i], a, b);
        rows_[i][columns_.first] = __float2bfloat16_rn(a);
        rows_[i][columns_.second] = __float2bfloat16_rn(b);
      }
    }
  }

 private:
  static constexpr int kPairs = kLatentRopeValues / 2;
  static constexpr int kAtOnce = kThreads / kPairs;  // tokens
  static constexpr int kTurns = (kTokens / kColumnTiles + kAtOnce - 1) / kAtOnce;

  RopePair columns_;
  __nv_bfloat16* rows_[kTurns];
  __nv_bfloat16 first_[kTurns];
  __nv_bfloat16 second_[kTurns];
  float cosine_[kTurns];
  float sine_[kTurns];
};

struct NoRotation {
  __device__ void Store() const {}
};

// A tile of a head: where it begins.
struct Place {
  int column_tile;
  std::int64_t first_token;
  std::int64_t head;

  // Of tiles in the order of columns, tokens, heads.
  __device__ static Place Of(int tile, int token_tiles, int tokens) {
    return {.column_tile = tile % kColumnTiles,
            .first_token = tile / kColumnTiles % token_tiles * std::int64_t{tokens},
            .head = tile / kColumnTiles / token_tiles};
  }
};

// The weights of the first stages, which no kernel writes.
template <int kTokens>
__device__ void LoadFirstWeights(const AbsorbQueryParams& p, const Place& at,
                                 std::uint8_t* shared) {
  using T = Tile<kTokens>;
  const int stages = (static_cast<int>(p.q_nope.cols) + kDepth - 1) / kDepth;
  for (int stage = 0; stage < min(stages, kStages); ++stage) {
    T::LoadWeights(shared + stage * T::kStageBytes, p, stage * kDepth, at.column_tile * kColumns,
                   at.head, static_cast<int>(threadIdx.x));
  }
}

// And the queries of the first, once they are written.
template <int kTokens>
__device__ void LoadFirstQueries(const AbsorbQueryParams& p, const Place& at,
                                 std::uint8_t* shared) {
  Tile<kTokens>::LoadQueries(shared, p, 0, at.first_token, at.head, static_cast<int>(threadIdx.x));
  ptx::CommitCopies();
}

// The rest of a tile; what is rotated is stored behind it.
template <int kTokens, typename AnyRotation>
__device__ void Finish(const AbsorbQueryParams& p, const Place& at, std::uint8_t* shared,
                       const AnyRotation& rotation) {
  using T = Tile<kTokens>;
  const int first_column = at.column_tile * kColumns;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const int column = T::Column(warp);
  const int token = T::Token(warp);
  const int stages = (static_cast<int>(p.q_nope.cols) + kDepth - 1) / kDepth;
  typename T::Totals totals = {};
  for (int stage = 0; stage < stages; ++stage) {
    if (stage + 1 < stages) {
      std::uint8_t* const next = shared + (stage + 1) % kStages * T::kStageBytes;
      if (stage + 1 >= kStages) {
        T::LoadWeights(next, p, (stage + 1) * kDepth, first_column, at.head, thread);
      }
      T::LoadQueries(next, p, (stage + 1) * kDepth, at.first_token, at.head, thread);
    }
    ptx::CommitCopies();
    ptx::WaitForCopies<1>();
    __syncthreads();
    T::Multiply(shared + stage % kStages * T::kStageBytes, column, token, totals);
    __syncthreads();
  }
  auto* results = reinterpret_cast<float*>(shared);
  const int lane = thread % kWarpSize;
#pragma unroll
  for (int m = 0; m < T::kColumnTiles; ++m) {
#pragma unroll
    for (int t = 0; t < T::kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        results[(token + t * 8 + lane % 4 * 2 + i % 2) * kResultStride + column + m * 16 +
                lane / 4 + i / 2 * 8] = totals[m][t][i];
      }
    }
  }
  __syncthreads();
  // 16 lanes store a token's tile.
  constexpr int kWidth = 8;
  constexpr int kLanes = kColumns / kWidth;
  const int value = thread % kLanes * kWidth;
  auto* const output = static_cast<__nv_bfloat16*>(p.q_latent.data) +
                       at.head * p.q_latent.head_stride + first_column + value;
#pragma unroll
  for (int first = 0; first < kTokens; first += kThreads / kLanes) {
    const int t = first + thread / kLanes;
    if (t < kTokens && at.first_token + t < p.q_latent.rows) {
      Pack<__nv_bfloat16, kWidth> rounded;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        rounded.values[i] = __float2bfloat16_rn(results[t * kResultStride + value + i]);
      }
      StorePack(output + (at.first_token + t) * p.q_latent.row_stride, rounded);
    }
  }
  rotation.Store();
}

}  // namespace dsa::cuda::absorb
