// PrepareIndexerQuery: one block of 128 threads per token and head, one value a thread.
//
// Reads 128 b H bytes a token and writes 128 H + 4 H for fp8; memory-bound.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/indexer_vector.cuh"
#include "kernels/cuda/launch.h"

namespace dsa {
namespace {

using cuda::kIndexerThreads;

template <typename T>
__global__ __launch_bounds__(kIndexerThreads) void PrepareIndexerQueryKernel(
    const __grid_constant__ PrepareIndexerQueryParams p, float factor) {
  __shared__ float shared[kIndexerValues];
  const std::int64_t row = blockIdx.x;
  const std::int64_t head = blockIdx.y;
  const int i = static_cast<int>(threadIdx.x);
  const T* q = static_cast<const T*>(p.q.data) + row * p.q.row_stride + head * p.q.head_stride;
  const std::int64_t out = row * p.queries.row_stride + head * p.queries.head_stride + i;

  float value = cuda::RotateByPosition<T>(cuda::ToFloat(q[i]), shared, p.table,
                                          p.positions.data[row], p.layout);
  float scale = 1.0F;
  if (p.format == KvFormat::kFp8) {
    value = cuda::RotateByHadamard<T>(value, shared);
    scale = cuda::VectorScale(value, shared);
    static_cast<std::uint8_t*>(p.queries.data)[out] = cuda::ToFp8(value / scale);
  } else {
    static_cast<T*>(p.queries.data)[out] = cuda::FromFloat<T>(value);
  }
  if (i == 0) {
    const float head_weight =
        static_cast<const float*>(p.head_weights.data)[row * p.head_weights.row_stride + head];
    p.weights.Row(row)[head] = head_weight * factor * scale;
  }
}

}  // namespace

void CudaBackend::PrepareIndexerQuery(const PrepareIndexerQueryParams& params) {
  const auto [tokens, heads] = Validate(params);
  if (tokens == 0 || heads == 0) {
    return;
  }
  const auto factor = static_cast<float>(
      1.0 / std::sqrt(static_cast<double>(heads) * static_cast<double>(kIndexerValues)));
  const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(heads));
  cuda::DispatchFloat(params.q.type, [&]<typename T>(T) {
    PrepareIndexerQueryKernel<T><<<grid, kIndexerThreads, 0, state_->stream>>>(params, factor);
  });
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa
