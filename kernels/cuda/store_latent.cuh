// One row of StoreLatent, by a block of kThreads threads, of which the first 128 work: thread i
// owns latent values i, i + 128, i + 256, i + 384, one of each scale block, and the first 32
// threads own a RoPE pair each.
//
//   latent   | block 0 (128) | block 1 | block 2 | block 3 |      RoPE | 64 |
//   warp w reduces the magnitudes of its 32 threads' share of every block; four partial maxima per
//   block meet in shared memory.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/kv_layout.h"
#include "kernels/ops/store_latent.h"

#include <cstdint>
#include <type_traits>

namespace dsa::cuda {

inline constexpr int kLatentThreads = kValuesPerScale;

template <typename T, int kThreads>
class LatentRow final {
 public:
  static_assert(kThreads >= kLatentThreads);

  __device__ LatentRow(const StoreLatentParams& params, std::int64_t row)
      : p_(params), row_(row), works_(threadIdx.x < kLatentThreads) {
    const std::int64_t slot = p_.slots.data[row];
    token_ = static_cast<int>(slot % kTokensPerBlock);
    block_ = p_.cache.data +
             slot / kTokensPerBlock * kTokensPerBlock * LatentTokenBytes(p_.cache.format);
  }

  // Every thread of the block calls it.
  __device__ void Run() {
    const T* kv = static_cast<const T*>(p_.kv.data) + row_ * p_.kv.row_stride;
    Normalise(kv);
    if (has_pair_) {
      RotatePair(kv + kLatentValues);
    }
    switch (p_.cache.format) {
      case KvFormat::kFp8: StoreFp8(); return;
      case KvFormat::kF32: StorePlain(reinterpret_cast<float*>(block_)); return;
      case KvFormat::kBf16: StorePlain(reinterpret_cast<__nv_bfloat16*>(block_)); return;
    }
  }

 private:
  static constexpr int kScales = LatentBlock::kScales;
  static constexpr int kWarps = kLatentThreads / kWarpSize;

  __device__ static int Column(int s) {
    return s * kValuesPerScale + static_cast<int>(threadIdx.x);
  }

  __device__ void Normalise(const T* kv) {
    float sum_of_squares = 0.0F;
#pragma unroll
    for (int s = 0; s < kScales; ++s) {
      c_[s] = works_ ? ToFloat(kv[Column(s)]) : 0.0F;
      sum_of_squares += c_[s] * c_[s];
    }
    const float mean = BlockSum<kThreads>(sum_of_squares) / static_cast<float>(kLatentValues);
    const float norm = 1.0F / sqrtf(mean + p_.eps);
#pragma unroll
    for (int s = 0; s < kScales; ++s) {
      c_[s] = works_ ? Rounded<T>(c_[s] * norm * p_.norm_weight.data[Column(s)]) : 0.0F;
    }
  }

  __device__ void RotatePair(const T* rope) {
    const int pair = static_cast<int>(threadIdx.x);
    const auto [first, second] = PairColumns(pair, kLatentRopeValues, p_.layout);
    a_ = ToFloat(rope[first]);
    b_ = ToFloat(rope[second]);
    Rotate(p_.table, p_.positions.data[row_], pair, a_, b_);
    a_ = Rounded<T>(a_);
    b_ = Rounded<T>(b_);
  }

  template <typename R>
  __device__ void StorePair(R* rope) const {
    if (has_pair_) {
      const auto [first, second] =
          PairColumns(static_cast<int>(threadIdx.x), kLatentRopeValues, p_.layout);
      rope[first] = FromFloat<R>(a_);
      rope[second] = FromFloat<R>(b_);
    }
  }

  template <typename R>
  __device__ void StorePlain(R* rows) const {
    R* const record = rows + token_ * (kLatentValues + kLatentRopeValues);
    if (works_) {
#pragma unroll
      for (int s = 0; s < kScales; ++s) {
        record[Column(s)] = FromFloat<R>(c_[s]);
      }
    }
    StorePair(record + kLatentValues);
  }

  __device__ void StoreFp8() const {
    __shared__ float warp_maxima[kScales][kWarps];
#pragma unroll
    for (int s = 0; s < kScales; ++s) {
      const float maximum = WarpMax(fabsf(c_[s]));
      if (works_ && threadIdx.x % kWarpSize == 0) {
        warp_maxima[s][threadIdx.x / kWarpSize] = maximum;
      }
    }
    __syncthreads();
    if (!works_) {
      return;
    }
#pragma unroll
    for (int s = 0; s < kScales; ++s) {
      float amax = 0.0F;
      for (const float maximum : warp_maxima[s]) {
        amax = fmaxf(amax, maximum);
      }
      const float scale = BlockScale(amax, ScaleFormat::kPowerOfTwo);
      block_[LatentBlock::Values(token_) + Column(s)] = ToFp8(c_[s] * ReciprocalOfPower(scale));
      if (threadIdx.x == 0) {
        reinterpret_cast<float*>(block_ + LatentBlock::Scales(token_))[s] = scale;
      }
    }
    StorePair(reinterpret_cast<__nv_bfloat16*>(block_ + LatentBlock::Rope(token_)));
  }

  const StoreLatentParams& p_;
  const std::int64_t row_;
  const bool works_;
  const bool has_pair_ = threadIdx.x < kLatentRopeValues / 2;
  int token_;            // of its block
  std::uint8_t* block_;  // of the cache
  float c_[kScales];
  float a_ = 0.0F;  // the rotated pair
  float b_ = 0.0F;
};

}  // namespace dsa::cuda
