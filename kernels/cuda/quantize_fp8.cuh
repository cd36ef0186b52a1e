// One block of 128 columns to fp8, by half a warp, eight values that lie together per lane: what
// QuantizeFp8 does, for the kernels that make its input.  kernels/ops/quantize_fp8.h.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/kv_layout.h"

namespace dsa::cuda {

inline constexpr int kQuantizeWidth = 8;
inline constexpr int kQuantizeLanes = kValuesPerScale / kQuantizeWidth;

// The lane's values, rounded; `scale` becomes the block's.  All lanes of the warp call it, with
// zeros where a row has no value.
__device__ inline Pack<Fp8E4m3, kQuantizeWidth> QuantizeBlock(const float (&values)[kQuantizeWidth],
                                                              ScaleFormat format, float& scale) {
  float amax = 0.0F;
#pragma unroll
  for (int i = 0; i < kQuantizeWidth; ++i) {
    amax = fmaxf(amax, fabsf(values[i]));
  }
  for (int offset = kQuantizeLanes / 2; offset > 0; offset /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(kAllLanes, amax, offset));
  }
  scale = BlockScale(amax, format);
  const ScaleDivisor divided(scale, format);
  Pack<Fp8E4m3, kQuantizeWidth> quantized;
#pragma unroll
  for (int i = 0; i < kQuantizeWidth; ++i) {
    quantized.values[i].bits = ToFp8(divided(values[i]));
  }
  return quantized;
}

}  // namespace dsa::cuda
