// IndexerLogits: one block of 64 threads per query row and cache block, one key a thread.
//
//   shared    queries [H, 128] f32 (512 H bytes), read by all threads at once: a broadcast
//   thread s  the 128 values of key s in registers; per head 128 multiply-adds, ReLU, weight
//
// 2 * 128 * H operations a key: compute-bound on the plain cores.  A tensor-core version replaces
// it; this one is the reference that it is checked against on the device.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/kv_layout.h"

namespace dsa {
namespace {

constexpr int kThreads = kTokensPerBlock;
constexpr int kQueryBytesMax = 128 * 1024;  // 256 heads

__device__ float LoadElement(const ConstAnyTensor3& tensor, std::int64_t index) {
  switch (tensor.type) {
    case DataType::kF32: return static_cast<const float*>(tensor.data)[index];
    case DataType::kBf16:
      return cuda::ToFloat(static_cast<const __nv_bfloat16*>(tensor.data)[index]);
    case DataType::kFp8E4m3:
      return cuda::Fp8ToFloat(static_cast<const std::uint8_t*>(tensor.data)[index]);
  }
  return 0.0F;
}

// The values of key `token` of a cache block, and its scale.
__device__ float LoadKey(const std::uint8_t* block, int token, KvFormat format,
                         float (&key)[kIndexerValues]) {
  if (format == KvFormat::kFp8) {
    const auto* values = reinterpret_cast<const uint4*>(block + IndexerBlock::Values(token));
#pragma unroll
    for (int load = 0; load < kIndexerValues / 16; ++load) {
      const uint4 bytes = values[load];
      const unsigned words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        key[load * 16 + i] =
            cuda::Fp8ToFloat(static_cast<std::uint8_t>(words[i / 4] >> (8 * (i % 4))));
      }
    }
    return *reinterpret_cast<const float*>(block + IndexerBlock::Scale(token));
  }
#pragma unroll
  for (int i = 0; i < kIndexerValues; ++i) {
    key[i] = format == KvFormat::kF32
                 ? reinterpret_cast<const float*>(block)[token * kIndexerValues + i]
                 : cuda::ToFloat(
                       reinterpret_cast<const __nv_bfloat16*>(block)[token * kIndexerValues + i]);
  }
  return 1.0F;
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
    queries[i] = LoadElement(
        p.queries, row * p.queries.row_stride + head * p.queries.head_stride + i % kIndexerValues);
  }
  __syncthreads();

  const std::int64_t key_position = first_key + threadIdx.x;
  if (key_position >= visible) {
    return;
  }
  const std::int64_t block_id = p.rows.block_tables.Row(p.rows.sequences.data[row])[blockIdx.x];
  const std::uint8_t* block =
      p.cache.data + block_id * kTokensPerBlock * IndexerTokenBytes(p.cache.format);
  float key[kIndexerValues];
  const float scale = LoadKey(block, static_cast<int>(threadIdx.x), p.cache.format, key);

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
  p.scores.Row(row)[key_position] = score * scale;
}

}  // namespace

void CudaBackend::IndexerLogits(const IndexerLogitsParams& params) {
  const auto [tokens, heads] = Validate(params);
  if (tokens == 0) {
    return;
  }
  const std::int64_t query_bytes = heads * kIndexerValues * 4;
  DSA_CHECK(query_bytes <= kQueryBytesMax, "IndexerLogits: H={} is too many", heads);
  DSA_CUDA_CHECK(cudaFuncSetAttribute(IndexerLogitsKernel,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, kQueryBytesMax));
  const std::int64_t blocks = (params.scores.cols + kTokensPerBlock - 1) / kTokensPerBlock;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(tokens));
  IndexerLogitsKernel<<<grid, kThreads, query_bytes, state_->stream>>>(params);
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa
