// One tile of y = x W^T on the tensor cores, both operands with the summed axis contiguous:
// 128 rows of W (A of the products) by kTokens rows of x (B), by one block of 256 threads.
//
//   stage of the ring   W [128 rows, 128 bytes] | x [kTokens, 128 bytes] | scales of x [kTokens]
//
// 128 bytes of a row are 128 e4m3 values, one block of scales, or 64 of bfloat16.  The order of the
// columns in a product is free if both operands have the same, so a lane takes 16 adjacent bytes of
// a row: lane 4 g + q of rows g and g + 8, bytes 64 h + 16 q of half h.  e4m3 becomes half in
// registers, which is exact, as every product then is in float32.
//
// A stage's sum is added to the total in float32, scaled where there are scales.  So a result's
// bits depend on its two rows alone: not on kTokens, nor on what stands beside them.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/kv_layout.h"

#include <cstdint>

namespace dsa::cuda {

// What a tile multiplies.  Strides are in bytes; scales are null but for fp8.
struct RowTile {
  const std::uint8_t* weight;  // its first row
  std::int64_t weight_stride;
  int weight_rows;              // at most 128
  const float* weight_scales;   // [K / 128]  of these 128 rows
  const std::uint8_t* x;        // row 0 of the matrix
  std::int64_t x_stride;        //
  const std::int32_t* x_rows;   // row t of the tile is row x_rows[t] of x; null: row t
  int tokens;                   // at most kTokens
  const float* x_scales;        // row 0 of the matrix
  std::int64_t x_scale_stride;  // in floats
  std::int64_t row_bytes;       // of the summed axis
  bool is_aligned;              // every row of both operands starts at a multiple of 16 bytes
};

template <typename Element, int kTokens>
struct RowProduct {
  static constexpr bool kFp8 = sizeof(Element) == 1;
  static constexpr int kWeightRows = 128;
  static constexpr int kThreads = 256;
  static constexpr int kStages = 4;
  static constexpr int kStageBytes = 128;  // of a row
  // Warps side by side along x, and the 16 x 8 tiles of a warp.
  static constexpr int kTokenWarps = kTokens >= 32 ? 2 : 1;
  static constexpr int kWeightWarps = 8 / kTokenWarps;
  static constexpr int kWeightTiles = kWeightRows / kWeightWarps / 16;
  static constexpr int kTokenTiles = kTokens / kTokenWarps / 8;
  static constexpr int kStageSize = (kWeightRows + kTokens) * kStageBytes + kTokens * 4;
  static constexpr int kResultStride = kWeightRows + 4;  // floats
  static constexpr int kRingBytes = kStages * kStageSize;
  static constexpr int kResultBytes = kTokens * kResultStride * 4;
  static constexpr int kSharedBytes = kRingBytes > kResultBytes ? kRingBytes : kResultBytes;
  static_assert(kTokenTiles >= 1 && kStageSize % 16 == 0);

  // Chunk c of 16 bytes of a row lies where eight lanes of two rows meet all banks.
  __device__ static int Place(int row, int chunk) {
    return row * kStageBytes + ((chunk ^ ((row & 1) * 4)) * 16);
  }

  // 16 bytes of a row from `offset` on, zeros beyond its end or where `row` is null.
  __device__ static void LoadChunk(std::uint8_t* to, const std::uint8_t* row, std::int64_t offset,
                                   const RowTile& tile) {
    const std::int64_t left = row == nullptr ? 0 : tile.row_bytes - offset;
    const int bytes = static_cast<int>(left < 0 ? 0 : left < 16 ? left : 16);
    if (tile.is_aligned) {
      ptx::CopyAsync16(to, bytes == 0 ? tile.weight : row + offset, bytes);
      return;
    }
    Pack<Element, 16 / sizeof(Element)> pack;
#pragma unroll
    for (int i = 0; i < static_cast<int>(16 / sizeof(Element)); ++i) {
      pack.values[i] = i * static_cast<int>(sizeof(Element)) < bytes
                           ? reinterpret_cast<const Element*>(row + offset)[i]
                           : Element{};
    }
    *reinterpret_cast<Pack<Element, 16 / sizeof(Element)>*>(to) = pack;
  }

  __device__ static std::int64_t RowOfX(const RowTile& tile, int token) {
    return tile.x_rows == nullptr ? token : tile.x_rows[token];
  }

  __device__ static void LoadWeights(std::uint8_t* stage, const RowTile& tile, int block) {
    const std::int64_t offset = block * std::int64_t{kStageBytes};
    const int chunk = static_cast<int>(threadIdx.x) % 8;
    for (int row = static_cast<int>(threadIdx.x) / 8; row < kWeightRows; row += kThreads / 8) {
      LoadChunk(stage + Place(row, chunk),
                row < tile.weight_rows ? tile.weight + row * tile.weight_stride : nullptr,
                offset + chunk * 16, tile);
    }
  }
  __device__ static void LoadInput(std::uint8_t* stage, const RowTile& tile, int block) {
    const std::int64_t offset = block * std::int64_t{kStageBytes};
    const int chunk = static_cast<int>(threadIdx.x) % 8;
    std::uint8_t* x = stage + kWeightRows * kStageBytes;
    for (int row = static_cast<int>(threadIdx.x) / 8; row < kTokens; row += kThreads / 8) {
      LoadChunk(x + Place(row, chunk),
                row < tile.tokens ? tile.x + RowOfX(tile, row) * tile.x_stride : nullptr,
                offset + chunk * 16, tile);
    }
    if (kFp8 && threadIdx.x < kTokens) {
      const int token = static_cast<int>(threadIdx.x);
      const bool exists = token < tile.tokens;
      ptx::CopyAsync4(
          x + kTokens * kStageBytes + token * 4,
          tile.x_scales + (exists ? RowOfX(tile, token) * tile.x_scale_stride + block : 0),
          exists ? 4 : 0);
    }
  }

  // A lane's 16 bytes as operands of their products: two registers per product.
  static constexpr int kSteps = kFp8 ? 4 : 2;  // products over 16 columns that 16 bytes feed
  struct Operand {
    unsigned words[2 * kSteps];
  };
  __device__ static Operand LoadOperand(const std::uint8_t* at) {
    const uint4 raw = *reinterpret_cast<const uint4*>(at);
    Operand operand;
    if constexpr (kFp8) {
      ToHalves(raw.x, operand.words[0], operand.words[1]);
      ToHalves(raw.y, operand.words[2], operand.words[3]);
      ToHalves(raw.z, operand.words[4], operand.words[5]);
      ToHalves(raw.w, operand.words[6], operand.words[7]);
    } else {
      operand = {raw.x, raw.y, raw.z, raw.w};
    }
    return operand;
  }

  using Totals = float[kWeightTiles][kTokenTiles][4];

  __device__ static void MultiplyStage(const std::uint8_t* stage, int weight_row, int token,
                                       float weight_scale, Totals& totals) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int g = lane / 4;
    const int q = lane % 4;
    const std::uint8_t* x = stage + kWeightRows * kStageBytes;
    float sums[kWeightTiles][kTokenTiles][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int chunk = half * 4 + q;
      Operand b[kTokenTiles];
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        b[n] = LoadOperand(x + Place(token + n * 8 + g, chunk));
      }
#pragma unroll
      for (int m = 0; m < kWeightTiles; ++m) {
        const Operand low = LoadOperand(stage + Place(weight_row + m * 16 + g, chunk));
        const Operand high = LoadOperand(stage + Place(weight_row + m * 16 + g + 8, chunk));
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const unsigned a[4] = {low.words[2 * step], high.words[2 * step], low.words[2 * step + 1],
                                 high.words[2 * step + 1]};
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) {
            if constexpr (kFp8) {
              ptx::MmaHalf(sums[m][n], a, b[n].words[2 * step], b[n].words[2 * step + 1]);
            } else {
              ptx::MmaBf16(sums[m][n], a, b[n].words[2 * step], b[n].words[2 * step + 1]);
            }
          }
        }
      }
    }
    const auto* x_scales = reinterpret_cast<const float*>(x + kTokens * kStageBytes);
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      float2 scale{1.0F, 1.0F};
      if constexpr (kFp8) {
        scale = *reinterpret_cast<const float2*>(x_scales + token + n * 8 + q * 2);
        scale = {scale.x * weight_scale, scale.y * weight_scale};
      }
#pragma unroll
      for (int m = 0; m < kWeightTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          totals[m][n][i] = fmaf(sums[m][n][i], i % 2 == 0 ? scale.x : scale.y, totals[m][n][i]);
        }
      }
    }
  }

  // The whole tile, to `shared` in float32: result of token t and weight row r at
  // [t * kResultStride + r].  `ready` is called before the first read of x; the weights of the
  // first stages are asked for before that.  Every thread of the block calls it.
  template <typename Ready>
  __device__ static const float* Multiply(std::uint8_t* shared, const RowTile& tile,
                                          const Ready& ready) {
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int weight_row = warp / kTokenWarps * kWeightTiles * 16;
    const int token = warp % kTokenWarps * kTokenTiles * 8;
    const int blocks = static_cast<int>((tile.row_bytes + kStageBytes - 1) / kStageBytes);
    Totals totals = {};
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) {
      if (stage < blocks) {
        LoadWeights(shared + stage * kStageSize, tile, stage);
      }
    }
    ready();
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) {
      if (stage < blocks) {
        LoadInput(shared + stage * kStageSize, tile, stage);
      }
      ptx::CommitCopies();
    }
    for (int block = 0; block < blocks; ++block) {
      ptx::WaitForCopies<kStages - 2>();
      __syncthreads();
      if (block + kStages - 1 < blocks) {
        std::uint8_t* const next = shared + (block + kStages - 1) % kStages * kStageSize;
        LoadWeights(next, tile, block + kStages - 1);
        LoadInput(next, tile, block + kStages - 1);
      }
      ptx::CommitCopies();
      MultiplyStage(shared + block % kStages * kStageSize, weight_row, token,
                    kFp8 ? tile.weight_scales[block] : 1.0F, totals);
    }
    ptx::WaitForCopies<0>();
    __syncthreads();

    auto* results = reinterpret_cast<float*>(shared);
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int m = 0; m < kWeightTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = weight_row + m * 16 + lane / 4 + i / 2 * 8;
          results[(token + n * 8 + lane % 4 * 2 + i % 2) * kResultStride + row] = totals[m][n][i];
        }
      }
    }
    __syncthreads();
    return results;
  }

  // The whole tile; store(token, weight_row, value) is called once for every result, by threads
  // with adjacent weight rows.  Every thread of the block calls it.
  template <typename Store>
  __device__ static void Run(std::uint8_t* shared, const RowTile& tile, const Store& store) {
    const float* const results = Multiply(shared, tile, [] {});
    const int row = static_cast<int>(threadIdx.x) % kWeightRows;
    if (row < tile.weight_rows) {
      for (int t = static_cast<int>(threadIdx.x) / kWeightRows; t < tile.tokens;
           t += kThreads / kWeightRows) {
        store(t, row, results[t * kResultStride + row]);
      }
    }
    __syncthreads();  // the ring may be filled again
  }
};

}  // namespace dsa::cuda
