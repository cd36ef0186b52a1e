// PrepareIndexQueries: a head has 32 lanes where rows are few, which is soonest done, and 4 where
// they are many, which is least work: shuffles are what bounds it.
//
// Reads 256 bytes a head and writes 132, and clears 8.3 KB of work memory a row.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/index_products.cuh"
#include "kernels/cuda/index_queries.h"
#include "kernels/cuda/index_scores.h"
#include "kernels/cuda/indexer_vector.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/kv_layout.h"

#include <cmath>

namespace dsa::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

struct KernelParams {
  IndexQueriesParams call;
  float factor;  // of all head weights
};

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

// A warp has 32 / kLanes heads of a row.
template <typename T, int kLanes>
__global__ __launch_bounds__(kThreads) void PrepareKernel(const __grid_constant__ KernelParams p) {
  constexpr int kHeads = kWarpSize / kLanes;
  ptx::WaitForPredecessors();
  ptx::AllowSuccessor();                           // not earlier: IndexScores relies on it
  const int warps = p.call.padded_heads / kHeads;  // of a row
  const std::int64_t warp = blockIdx.x * std::int64_t{kWarps} + threadIdx.x / kWarpSize;
  const std::int64_t row = warp / warps;
  if (row >= p.call.q.rows) {
    return;
  }
  const int of_row = static_cast<int>(warp % warps);
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

template <typename T, int kLanes>
void Launch(const KernelParams& p, cudaStream_t stream) {
  const std::int64_t warps = p.call.q.rows * p.call.padded_heads * kLanes / kWarpSize;
  LaunchDependent(
      PrepareKernel<T, kLanes>,
      {.grid = static_cast<unsigned>((warps + kWarps - 1) / kWarps), .threads = kThreads}, stream,
      p);
}

}  // namespace

void PrepareIndexQueries(const IndexQueriesParams& params, cudaStream_t stream) {
  const KernelParams p{
      .call = params,
      .factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(params.q.heads) *
                                                   static_cast<double>(kIndexerValues)))};
  const bool has_many = params.q.rows > 2 * kMultiprocessors;
  DispatchFloat(params.q.type, [&]<typename T>(T) {
    if (has_many) {
      Launch<T, 4>(p, stream);
    } else {
      Launch<T, 32>(p, stream);
    }
  });
}

}  // namespace dsa::cuda
