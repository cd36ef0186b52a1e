// PrepareIndexerQuery: one warp per token and head, eight warps a block.
//
// Reads 128 b H bytes a token and writes 128 H + 4 H for fp8; memory-bound.
#include "kernels/cuda/indexer_vector.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/prepare_indexer_query.h"

namespace dsa {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * cuda::kWarpSize;

template <typename T>
__global__ __launch_bounds__(kThreads) void PrepareIndexerQueryKernel(
    const __grid_constant__ PrepareIndexerQueryParams p, float factor) {
  const std::int64_t row = blockIdx.x;
  const std::int64_t head = blockIdx.y * std::int64_t{kWarps} + threadIdx.x / cuda::kWarpSize;
  if (head >= p.q.heads) {
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const T* q = static_cast<const T*>(p.q.data) + row * p.q.row_stride + head * p.q.head_stride;
  const std::int64_t out = row * p.queries.row_stride + head * p.queries.head_stride;

  cuda::IndexerPart part;
  cuda::LoadIndexerPart(q, lane, part);
  cuda::RotateByPosition<T>(part, lane, p.table, p.positions.data[row], p.layout);
  float scale = 1.0F;
  if (p.format == KvFormat::kFp8) {
    cuda::RotateByHadamard<T>(part, lane);
    scale = cuda::QuantizeIndexerPart(part, lane, static_cast<std::uint8_t*>(p.queries.data) + out);
  } else {
    cuda::StoreIndexerPart(static_cast<T*>(p.queries.data) + out, lane, part);
  }
  if (lane == 0) {
    const float head_weight =
        static_cast<const float*>(p.head_weights.data)[row * p.head_weights.row_stride + head];
    p.weights.Row(row)[head] = head_weight * factor * scale;
  }
}

}  // namespace

void cuda::PrepareIndexerQuery(const PrepareIndexerQueryParams& params, cudaStream_t stream) {
  const auto [tokens, heads] = Validate(params);
  if (tokens == 0 || heads == 0) {
    return;
  }
  const auto factor = static_cast<float>(
      1.0 / std::sqrt(static_cast<double>(heads) * static_cast<double>(kIndexerValues)));
  const dim3 grid(static_cast<unsigned>(tokens),
                  static_cast<unsigned>((heads + kWarps - 1) / kWarps));
  cuda::DispatchFloat(params.q.type, [&]<typename T>(T) {
    PrepareIndexerQueryKernel<T><<<grid, kThreads, 0, stream>>>(params, factor);
  });
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa
