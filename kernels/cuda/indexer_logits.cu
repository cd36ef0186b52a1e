// IndexerLogits of the bf16 and f32 formats: one block of 64 threads per query row and cache block,
// one key a thread.
//
//   shared    queries [H, 128] f32 (512 H bytes), read by all threads at once: a broadcast
//   thread s  the 128 values of key s in registers; per head 128 multiply-adds, ReLU, weight
//
// 2 * 128 * H operations a key: compute-bound on the plain cores.  The fp8 format, which a server
// uses, has its own kernel on the tensor cores.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/indexer_logits.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/kv_layout.h"

namespace dsa {
namespace {

constexpr int kThreads = kTokensPerBlock;
constexpr int kQueryBytesMax = 128 * 1024;  // 256 heads

__device__ float LoadElement(const void* data, bool is_f32, std::int64_t index) {
  return is_f32 ? static_cast<const float*>(data)[index]
                : cuda::ToFloat(static_cast<const __nv_bfloat16*>(data)[index]);
}

__global__ __launch_bounds__(kThreads) void IndexerLogitsKernel(
    const __grid_constant__ IndexerLogitsParams p) {
  extern __shared__ float queries[];  // [H, 128]
  const std::int64_t row = blockIdx.y;
  const std::int64_t first_key = blockIdx.x * std::int64_t{kTokensPerBlock};
  const std::int64_t visible = p.rows.positions.data[row] + std::int64_t{1};
  if (first_key >= visible) {
    return;
  }
  const int heads = static_cast<int>(p.queries.heads);
  for (int i = static_cast<int>(threadIdx.x); i < heads * kIndexerValues; i += kThreads) {
    const int head = i / kIndexerValues;
    queries[i] =
        LoadElement(p.queries.data, p.queries.type == DataType::kF32,
                    row * p.queries.row_stride + head * p.queries.head_stride + i % kIndexerValues);
  }
  __syncthreads();

  const std::int64_t key_position = first_key + threadIdx.x;
  if (key_position >= visible) {
    return;
  }
  const std::int64_t block_id = p.rows.block_tables.Row(p.rows.sequences.data[row])[blockIdx.x];
  const std::int64_t first_value = (block_id * kTokensPerBlock + threadIdx.x) * kIndexerValues;
  float key[kIndexerValues];
#pragma unroll
  for (int i = 0; i < kIndexerValues; ++i) {
    key[i] = LoadElement(p.cache.data, p.cache.format == KvFormat::kF32, first_value + i);
  }

  const float* weights = p.weights.Row(row);
  float score = 0.0F;
  for (int head = 0; head < heads; ++head) {
    const float* query = queries + head * kIndexerValues;
    float dot[4] = {};
#pragma unroll
    for (int i = 0; i < kIndexerValues; ++i) {
      dot[i % 4] = fmaf(query[i], key[i], dot[i % 4]);
    }
    const float product = (dot[0] + dot[1]) + (dot[2] + dot[3]);
    // Not fmaxf, which would hide a NaN.
    score = fmaf(weights[head], product < 0.0F ? 0.0F : product, score);
  }
  p.scores.Row(row)[key_position] = score;
}

}  // namespace

void cuda::IndexerLogits(const IndexerLogitsParams& params, cudaStream_t stream) {
  const auto [tokens, heads] = Validate(params);
  if (tokens == 0) {
    return;
  }
  if (params.cache.format == KvFormat::kFp8) {
    cuda::IndexerLogitsFp8(params, stream);
    return;
  }
  const std::int64_t query_bytes = heads * kIndexerValues * 4;
  DSA_CHECK(query_bytes <= kQueryBytesMax, "IndexerLogits: H={} is too many", heads);
  DSA_CUDA_CHECK(cudaFuncSetAttribute(IndexerLogitsKernel,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, kQueryBytesMax));
  const std::int64_t blocks = (params.scores.cols + kTokensPerBlock - 1) / kTokensPerBlock;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(tokens));
  IndexerLogitsKernel<<<grid, kThreads, query_bytes, stream>>>(params);
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa
