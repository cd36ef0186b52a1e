// StoreIndexerKey: one warp per token, eight a block, all steps in registers.  Reads 128 b bytes a
// token, writes 132; tiny.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/indexer_vector.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/ops/store_indexer_key.h"

namespace dsa {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * cuda::kWarpSize;

// Layer norm of a warp's values with weight and bias, rounded to T.
template <typename T>
__device__ void Normalise(const StoreIndexerKeyParams& p, int lane, cuda::IndexerPart& part) {
  constexpr float kCount = static_cast<float>(kIndexerValues);
  const float mean = cuda::WarpSum((part[0] + part[1]) + (part[2] + part[3])) / kCount;
  float squares = 0.0F;
#pragma unroll
  for (float& value : part) {
    value -= mean;
    squares += value * value;
  }
  const float variance = cuda::WarpSum(squares) / kCount;
  const float deviation = sqrtf(variance + p.eps);
  cuda::IndexerPart weight;
  cuda::IndexerPart bias;
  cuda::LoadIndexerPart(p.norm_weight.data, lane, weight);
  cuda::LoadIndexerPart(p.norm_bias.data, lane, bias);
#pragma unroll
  for (int i = 0; i < cuda::kIndexerWidth; ++i) {
    part[i] = cuda::Rounded<T>(__fadd_rn(__fmul_rn(part[i] / deviation, weight[i]), bias[i]));
  }
}

template <typename T>
__global__ __launch_bounds__(kThreads) void StoreIndexerKeyKernel(
    const __grid_constant__ StoreIndexerKeyParams p) {
  cuda::StartAfterPredecessors();
  const std::int64_t row = blockIdx.x * std::int64_t{kWarps} + threadIdx.x / cuda::kWarpSize;
  if (row >= p.k.rows) {
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  cuda::IndexerPart part;
  cuda::LoadIndexerPart(static_cast<const T*>(p.k.data) + row * p.k.row_stride, lane, part);
  Normalise<T>(p, lane, part);
  cuda::RotateByPosition<T>(part, lane, p.table, p.positions.data[row], p.layout);

  // Store.
  const std::int64_t slot = p.slots.data[row];
  const int token = static_cast<int>(slot % kTokensPerBlock);
  std::uint8_t* block =
      p.cache.data + slot / kTokensPerBlock * kTokensPerBlock * IndexerTokenBytes(p.cache.format);
  if (p.cache.format == KvFormat::kF32) {
    cuda::StoreIndexerPart(reinterpret_cast<float*>(block) + token * kIndexerValues, lane, part);
    return;
  }
  if (p.cache.format == KvFormat::kBf16) {
    cuda::StoreIndexerPart(reinterpret_cast<__nv_bfloat16*>(block) + token * kIndexerValues, lane,
                           part);
    return;
  }
  cuda::RotateByHadamard<T>(part, lane);
  const float scale = cuda::QuantizeIndexerPart(part, lane, block + IndexerBlock::Values(token));
  if (lane == 0) {
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
    cuda::LaunchDependent(
        StoreIndexerKeyKernel<T>,
        {.grid = static_cast<unsigned>((tokens + kWarps - 1) / kWarps), .threads = kThreads},
        state_->stream, params);
  });
}

}  // namespace dsa
