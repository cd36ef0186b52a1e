// Tiles of AbsorbQuery on the tensor cores, and the rotation beside them: what its own kernel and
// the blocks beside a selection share.  A tile is 128 latent values of a head for kTokens rows, by
// 256 threads, whose number among them is `thread`.
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

}  // namespace dsa::cuda::absorb
