// PrepareIndexQueries by warps: what its own kernel and that of attention's queries share.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/index_products.cuh"
#include "kernels/cuda/index_queries.h"
#include "kernels/cuda/index_scores.h"
#include "kernels/cuda/indexer_vector.cuh"
#include "kernels/kv_layout.h"

#include <cmath>
#include <cstdint>

namespace dsa::cuda::index_queries {

inline constexpr int kWarps = 8;  // of a block
inline constexpr int kThreads = kWarps * kWarpSize;

struct KernelParams {
  IndexQueriesParams call;
  float factor;  // of all head weights
};
inline KernelParams ParamsOf(const IndexQueriesParams& params) {
  return {.call = params,
          .factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(params.q.heads) *
                                                       static_cast<double>(kIndexerValues)))};
}
// Blocks whose warps have all heads of all rows.
inline unsigned BlocksOf(const IndexQueriesParams& params, int lanes) {
  const std::int64_t warps = params.q.rows * params.padded_heads * lanes / kWarpSize;
  return static_cast<unsigned>((warps + kWarps - 1) / kWarps);
}

// Where four lanes hold a head, each has the 16-byte pieces that it writes.
__device__ inline void StoreCodes(std::uint8_t* query, int head, int lane,
                                  const unsigned (&codes)[1]) {
  *reinterpret_cast<unsigned*>(query + QueryPlace(head, lane)) = codes[0];
}
__device__ inline void StoreCodes(std::uint8_t* query, int head, int lane,
                                  const unsigned (&codes)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    *reinterpret_cast<uint4*>(query + QueryPlace(head, 16 * half + lane)) =
        make_uint4(codes[4 * half], codes[4 * half + 1], codes[4 * half + 2], codes[4 * half + 3]);
  }
}

// 32 / kLanes heads of a row, whichever are `warp`'s.
template <typename T, int kLanes>
__device__ void PrepareHeads(const KernelParams& p, std::int64_t warp) {
  constexpr int kHeads = kWarpSize / kLanes;
  const int warps = p.call.padded_heads / kHeads;  // of a row: a power of two
  const std::int64_t row = warp >> (__ffs(warps) - 1);
  if (row >= p.call.q.rows) {
    return;
  }
  const int of_row = static_cast<int>(warp) & (warps - 1);
  const int thread = static_cast<int>(threadIdx.x) % kWarpSize;  // of the warp
  const int head = of_row * kHeads + thread / kLanes;
  const int lane = thread % kLanes;
  const bool has_head = head < static_cast<int>(p.call.q.heads);
  float part[kIndexerValues / kLanes] = {};
  if (has_head) {
    LoadIndexerPart(static_cast<const T*>(p.call.q.data) + row * p.call.q.row_stride +
                        head * p.call.q.head_stride,
                    lane, part);
  }
  auto* const work = reinterpret_cast<int4*>(p.call.work + row * kRowWorkInts);
  for (int i = of_row * kWarpSize + thread; i < kRowWorkInts / 4; i += warps * kWarpSize) {
    work[i] = make_int4(0, 0, 0, 0);
  }
  if (warp == 0 && thread == 0) {
    p.call.work[p.call.q.rows * kRowWorkInts] = 0;
  }

  RotateByPosition<T>(part, lane, p.call.table, p.call.positions.data[row], p.call.layout);
  RotateByHadamard<T>(part, lane);
  unsigned codes[kIndexerValues / kLanes / kIndexerChunk];
  const float scale = QuantizeIndexerPart(part, codes);
  StoreCodes(p.call.queries + row * PreparedQueryBytes(p.call.padded_heads), head, lane, codes);
  if (lane == 0) {
    float weight = 0.0F;
    if (has_head) {
      weight = static_cast<const float*>(
          p.call.head_weights.data)[row * p.call.head_weights.row_stride + head];
      weight = weight * p.factor * scale * 0.5F;
    }
    p.call.weights[row * p.call.padded_heads + WeightPlace(head)] = weight;
  }
}

}  // namespace dsa::cuda::index_queries
