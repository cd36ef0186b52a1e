// Part of a narrow bf16 product, y = x W^T, by a cluster of blocks (of one block, too): 16 outputs
// of all rows, 8 kTiles at most.  K is cut into chunks of 32 columns; warp w of the cluster's W
// warps takes chunks w, w + W, ...:
//
//   A   weight  [16 outputs, 32 of K]   mma.m16n8k16, two per chunk; straight from memory
//   B   rows    [8 of T, 32 of K]       kTiles times
//
// The order of the columns in a product is free if both operands have the same, so a lane takes 16
// adjacent bytes of a row.  The warps' sums meet in shared memory, the blocks' sums in that of the
// cluster, each added in a fixed order.
//
// The weight's first chunks are read before the kernels ahead have ended.  Bytes: 2 N K + 2 T K of
// the L2 cache per 16 outputs: bound by latency, some 4 us.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/ops/linear.h"

#include <cooperative_groups.h>

namespace dsa::cuda::narrow_product {

namespace cg = cooperative_groups;

inline constexpr int kOutputs = 16;  // of a cluster
inline constexpr int kChunk = 32;    // columns
inline constexpr int kAhead = 4;     // chunks of the weight in registers before x is there

// Of a block.
template <int kTiles, int kWarps>
struct Shared {
  static constexpr int kSums = kOutputs * kTiles * 8;
  float warp_sums[kWarps][kSums];  // [output, token]
  float block_sums[kSums];
};

// 16 bytes of a row, the operands of two products.
struct Piece {
  unsigned words[4];
};
__device__ inline Piece LoadPiece(const __nv_bfloat16* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  return {{raw.x, raw.y, raw.z, raw.w}};
}

// The rows g and g + 8 of a chunk of the weight.
struct WeightPiece {
  Piece low;
  Piece high;
};

template <int kTiles>
__device__ void MultiplyChunk(const WeightPiece& a, const Piece (&b)[kTiles],
                              float (&sums)[kTiles][4]) {
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    const unsigned words[4] = {a.low.words[2 * step], a.high.words[2 * step],
                               a.low.words[2 * step + 1], a.high.words[2 * step + 1]};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      ptx::MmaBf16(sums[tile], words, b[tile].words[2 * step], b[tile].words[2 * step + 1]);
    }
  }
}

// What a cluster computes: outputs [output, output + 16) of up to 8 kTiles rows from `token` on.
struct Place {
  int output;
  int token;
};

// Every thread of every block of the cluster calls it.
template <int kTiles, int kWarps>
__device__ void Run(const LinearParams& p, Place first, Shared<kTiles, kWarps>& shared) {
  constexpr int kThreads = kWarps * kWarpSize;
  constexpr int kTokens = kTiles * 8;
  constexpr int kSums = kOutputs * kTokens;
  // Chunks of x in registers; each comes from the L2 cache, behind whatever else reads it.
  constexpr int kBuffers = kTiles <= 2 ? 4 : 2;
  static_assert(kAhead % kBuffers == 0);
  const cg::cluster_group cluster = cg::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank());
  const int blocks = static_cast<int>(cluster.num_blocks());
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int g = lane / 4;
  const int q = lane % 4;
  const int chunks = static_cast<int>(p.x.cols) / kChunk;
  const int first_chunk = rank * kWarps + warp;
  const int step = blocks * kWarps;
  const auto* weight = static_cast<const __nv_bfloat16*>(p.weight.data) +
                       (first.output + g) * p.weight.row_stride + q * 8;
  const auto load_weight = [&](int chunk) {
    return WeightPiece{LoadPiece(weight + chunk * kChunk),
                       LoadPiece(weight + 8 * p.weight.row_stride + chunk * kChunk)};
  };

  WeightPiece ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (first_chunk + i * step < chunks) {
      ahead[i] = load_weight(first_chunk + i * step);
    }
  }
  ptx::WaitForPredecessors();

  // Multiply.
  float sums[kTiles][4] = {};
  Piece rows[kBuffers][kTiles];
  const auto load_rows = [&](int chunk, Piece(&to)[kTiles]) {
    if (chunk < chunks) {
      const auto* x = static_cast<const __nv_bfloat16*>(p.x.data) + chunk * kChunk + q * 8;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int token = first.token + tile * 8 + g;
        to[tile] = token < p.x.rows ? LoadPiece(x + token * p.x.row_stride) : Piece{};
      }
    }
  };
#pragma unroll
  for (int i = 0; i < kBuffers - 1; ++i) {
    load_rows(first_chunk + i * step, rows[i]);
  }
  for (int turn = first_chunk; turn < chunks; turn += kAhead * step) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int chunk = turn + i * step;
      load_rows(chunk + (kBuffers - 1) * step, rows[(i + kBuffers - 1) % kBuffers]);
      if (chunk < chunks) {
        MultiplyChunk<kTiles>(ahead[i], rows[i % kBuffers], sums);
      }
      if (chunk + kAhead * step < chunks) {
        ahead[i] = load_weight(chunk + kAhead * step);
      }
    }
  }

  // Add up.
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      shared.warp_sums[warp][(g + i / 2 * 8) * kTokens + tile * 8 + q * 2 + i % 2] = sums[tile][i];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kSums; i += kThreads) {
    float sum = 0.0F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      sum += shared.warp_sums[w][i];
    }
    shared.block_sums[i] = sum;
  }
  cluster.sync();
  const int thread = rank * kThreads + static_cast<int>(threadIdx.x);  // of the cluster
  for (int at = thread; at < kSums; at += blocks * kThreads) {
    float sum = 0.0F;
    for (int block = 0; block < blocks; ++block) {
      sum += cluster.map_shared_rank(shared.block_sums, block)[at];
    }
    const int token = first.token + at % kTokens;
    const std::int64_t place = token * p.y.row_stride + first.output + at / kTokens;
    if (token < p.y.rows) {
      if (p.y.type == DataType::kF32) {
        static_cast<float*>(p.y.data)[place] = sum;
      } else {
        static_cast<__nv_bfloat16*>(p.y.data)[place] = __float2bfloat16_rn(sum);
      }
    }
  }
  cluster.sync();  // a block's memory lives until nobody reads it
}

}  // namespace dsa::cuda::narrow_product
