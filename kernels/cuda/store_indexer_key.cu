// StoreIndexerKey: one block of 128 threads per token, one value a thread, all steps in registers
// and 512 bytes of shared memory.  Reads 128 b bytes a token, writes 132; tiny.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/indexer_vector.cuh"
#include "kernels/cuda/launch.h"

namespace dsa {
namespace {

using cuda::kIndexerThreads;

template <typename T>
__global__ __launch_bounds__(kIndexerThreads) void StoreIndexerKeyKernel(
    const __grid_constant__ StoreIndexerKeyParams p) {
  __shared__ float shared[kIndexerValues];
  const std::int64_t row = blockIdx.x;
  const int i = static_cast<int>(threadIdx.x);
  const T* k = static_cast<const T*>(p.k.data) + row * p.k.row_stride;

  // Layer norm.
  constexpr float kCount = static_cast<float>(kIndexerValues);
  const float x = cuda::ToFloat(k[i]);
  const float mean = cuda::BlockSum<kIndexerThreads>(x) / kCount;
  const float centred = x - mean;
  const float variance = cuda::BlockSum<kIndexerThreads>(centred * centred) / kCount;
  const float normed = centred / sqrtf(variance + p.eps);
  float value =
      cuda::Rounded<T>(__fadd_rn(__fmul_rn(normed, p.norm_weight.data[i]), p.norm_bias.data[i]));

  value = cuda::RotateByPosition<T>(value, shared, p.table, p.positions.data[row], p.layout);

  // Store.
  const std::int64_t slot = p.slots.data[row];
  const int token = static_cast<int>(slot % kTokensPerBlock);
  std::uint8_t* block =
      p.cache.data + slot / kTokensPerBlock * kTokensPerBlock * IndexerTokenBytes(p.cache.format);
  if (p.cache.format == KvFormat::kF32) {
    reinterpret_cast<float*>(block)[token * kIndexerValues + i] = value;
    return;
  }
  if (p.cache.format == KvFormat::kBf16) {
    reinterpret_cast<__nv_bfloat16*>(block)[token * kIndexerValues + i] =
        cuda::FromFloat<__nv_bfloat16>(value);
    return;
  }
  value = cuda::RotateByHadamard<T>(value, shared);
  const float scale = cuda::VectorScale(value, shared);
  block[IndexerBlock::Values(token) + i] = cuda::ToFp8(value / scale);
  if (i == 0) {
    *reinterpret_cast<float*>(block + IndexerBlock::Scale(token)) = scale;
  }
}

}  // namespace

void CudaBackend::StoreIndexerKey(const StoreIndexerKeyParams& params) {
  const auto [tokens] = Validate(params);
  if (tokens == 0) {
    return;
  }
  cuda::DispatchFloat(params.k.type, [&, tokens = tokens]<typename T>(T) {
    StoreIndexerKeyKernel<T>
        <<<static_cast<unsigned>(tokens), kIndexerThreads, 0, state_->stream>>>(params);
  });
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa
