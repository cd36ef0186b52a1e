// StoreLatent: one block of 128 threads per token; thread i owns latent values i, i + 128, i + 256,
// i + 384, one of each scale block, and the first 32 threads own a RoPE pair each.
//
//   latent   | block 0 (128) | block 1 | block 2 | block 3 |      RoPE | 64 |
//   warp w reduces the magnitudes of its 32 threads' share of every block; four partial maxima a
//   block meet in shared memory.
//
// Reads 576 b bytes a token and writes one record; memory-bound and tiny.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rope.cuh"
#include "kernels/kv_layout.h"
#include "kernels/ops/store_latent.h"

namespace dsa {
namespace {

constexpr int kThreads = kValuesPerScale;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kScales = LatentBlock::kScales;

// The largest of each scale block's magnitudes, over the block.
__device__ void BlockMaxima(float (&amax)[kScales]) {
  __shared__ float warp_maxima[kScales][kWarps];
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    const float maximum = cuda::WarpMax(amax[s]);
    if (threadIdx.x % cuda::kWarpSize == 0) {
      warp_maxima[s][threadIdx.x / cuda::kWarpSize] = maximum;
    }
  }
  __syncthreads();
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    amax[s] = 0.0F;
    for (const float maximum : warp_maxima[s]) {
      amax[s] = fmaxf(amax[s], maximum);
    }
  }
}

// `rope` is the thread's rotated pair, in threads below 32.
template <typename R>
__device__ void StoreRopePair(R* record, const StoreLatentParams& p, float a, float b) {
  const auto [first, second] =
      cuda::PairColumns(static_cast<int>(threadIdx.x), kLatentRopeValues, p.layout);
  record[first] = cuda::FromFloat<R>(a);
  record[second] = cuda::FromFloat<R>(b);
}

__device__ void StoreFp8(std::uint8_t* block, int token, float (&c)[kScales]) {
  float amax[kScales];
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    amax[s] = fabsf(c[s]);
  }
  BlockMaxima(amax);
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    const float scale = cuda::BlockScale(amax[s], ScaleFormat::kPowerOfTwo);
    block[LatentBlock::Values(token) + s * kValuesPerScale + threadIdx.x] =
        cuda::ToFp8(c[s] / scale);
    if (threadIdx.x == 0) {
      reinterpret_cast<float*>(block + LatentBlock::Scales(token))[s] = scale;
    }
  }
}

template <typename T>
__global__ __launch_bounds__(kThreads) void StoreLatentKernel(
    const __grid_constant__ StoreLatentParams p) {
  cuda::StartAfterPredecessors();
  const std::int64_t row = blockIdx.x;
  const T* kv = static_cast<const T*>(p.kv.data) + row * p.kv.row_stride;
  const std::int64_t slot = p.slots.data[row];
  const int token = static_cast<int>(slot % kTokensPerBlock);
  std::uint8_t* block =
      p.cache.data + slot / kTokensPerBlock * kTokensPerBlock * LatentTokenBytes(p.cache.format);

  // Normalise.
  float c[kScales];
  float sum_of_squares = 0.0F;
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    c[s] = cuda::ToFloat(kv[s * kValuesPerScale + threadIdx.x]);
    sum_of_squares += c[s] * c[s];
  }
  const float mean = cuda::BlockSum<kThreads>(sum_of_squares) / static_cast<float>(kLatentValues);
  const float norm = 1.0F / sqrtf(mean + p.eps);
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    c[s] = cuda::Rounded<T>(c[s] * norm * p.norm_weight.data[s * kValuesPerScale + threadIdx.x]);
  }

  // Rotate.
  float a = 0.0F;
  float b = 0.0F;
  const bool has_pair = threadIdx.x < kLatentRopeValues / 2;
  if (has_pair) {
    const int pair = static_cast<int>(threadIdx.x);
    const auto [first, second] = cuda::PairColumns(pair, kLatentRopeValues, p.layout);
    a = cuda::ToFloat(kv[kLatentValues + first]);
    b = cuda::ToFloat(kv[kLatentValues + second]);
    cuda::Rotate(p.table, p.positions.data[row], pair, a, b);
    a = cuda::Rounded<T>(a);
    b = cuda::Rounded<T>(b);
  }

  // Store.
  if (p.cache.format == KvFormat::kFp8) {
    StoreFp8(block, token, c);
    if (has_pair) {
      StoreRopePair(reinterpret_cast<__nv_bfloat16*>(block + LatentBlock::Rope(token)), p, a, b);
    }
    return;
  }
  const auto store_plain = [&](auto* rows) {
    auto* record = rows + token * (kLatentValues + kLatentRopeValues);
    using R = std::remove_pointer_t<decltype(rows)>;
#pragma unroll
    for (int s = 0; s < kScales; ++s) {
      record[s * kValuesPerScale + threadIdx.x] = cuda::FromFloat<R>(c[s]);
    }
    if (has_pair) {
      StoreRopePair(record + kLatentValues, p, a, b);
    }
  };
  if (p.cache.format == KvFormat::kF32) {
    store_plain(reinterpret_cast<float*>(block));
  } else {
    store_plain(reinterpret_cast<__nv_bfloat16*>(block));
  }
}

}  // namespace

void CudaBackend::StoreLatent(const StoreLatentParams& params) {
  const auto [tokens] = Validate(params);
  if (tokens == 0) {
    return;
  }
  cuda::DispatchFloat(params.kv.type, [&, tokens = tokens]<typename T>(T) {
    cuda::LaunchDependent(StoreLatentKernel<T>,
                          {.grid = static_cast<unsigned>(tokens), .threads = kThreads},
                          state_->stream, params);
  });
}

}  // namespace dsa
