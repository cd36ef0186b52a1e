// One row of StoreIndexerKey, by a warp, all steps in registers.
#pragma once

#include "kernels/cuda/indexer_vector.cuh"
#include "kernels/ops/store_indexer_key.h"

#include <cstdint>

namespace dsa::cuda {

// Layer norm of a warp's values with weight and bias, rounded to T.
template <typename T>
__device__ void NormaliseIndexerKey(const StoreIndexerKeyParams& p, int lane, IndexerPart& part) {
  constexpr float kCount = static_cast<float>(kIndexerValues);
  const float mean = WarpSum((part[0] + part[1]) + (part[2] + part[3])) / kCount;
  float squares = 0.0F;
#pragma unroll
  for (float& value : part) {
    value -= mean;
    squares += value * value;
  }
  const float variance = WarpSum(squares) / kCount;
  const float deviation = sqrtf(variance + p.eps);
  IndexerPart weight;
  IndexerPart bias;
  LoadIndexerPart(p.norm_weight.data, lane, weight);
  LoadIndexerPart(p.norm_bias.data, lane, bias);
#pragma unroll
  for (int i = 0; i < kIndexerChunk; ++i) {
    part[i] = Rounded<T>(__fadd_rn(__fmul_rn(part[i] / deviation, weight[i]), bias[i]));
  }
}

template <typename T>
__device__ void StoreIndexerKeyRow(const StoreIndexerKeyParams& p, std::int64_t row) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  IndexerPart part;
  LoadIndexerPart(static_cast<const T*>(p.k.data) + row * p.k.row_stride, lane, part);
  NormaliseIndexerKey<T>(p, lane, part);
  RotateByPosition<T>(part, lane, p.table, p.positions.data[row], p.layout);

  // Store.
  const std::int64_t slot = p.slots.data[row];
  const int token = static_cast<int>(slot % kTokensPerBlock);
  std::uint8_t* block =
      p.cache.data + slot / kTokensPerBlock * kTokensPerBlock * IndexerTokenBytes(p.cache.format);
  if (p.cache.format == KvFormat::kF32) {
    StoreIndexerPart(reinterpret_cast<float*>(block) + token * kIndexerValues, lane, part);
    return;
  }
  if (p.cache.format == KvFormat::kBf16) {
    StoreIndexerPart(reinterpret_cast<__nv_bfloat16*>(block) + token * kIndexerValues, lane, part);
    return;
  }
  RotateByHadamard<T>(part, lane);
  const float scale = QuantizeIndexerPart(part, lane, block + IndexerBlock::Values(token));
  if (lane == 0) {
    *reinterpret_cast<float*>(block + IndexerBlock::Scale(token)) = scale;
  }
}

}  // namespace dsa::cuda
