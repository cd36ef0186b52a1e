// What lies between gate and up of an MLP and its down: SwiGLU of few rows and the fp8 copy that
// down reads, by half a warp per row and block of 128 columns.  Reads 4 T I bytes, writes T I.
#pragma once

#include "kernels/cuda/activate.h"
#include "kernels/cuda/quantize_fp8.cuh"
#include "kernels/cuda/swiglu.cuh"

#include <cstdint>

namespace dsa::cuda {

// Half a warp's task, all lanes of the warp; there may be none of this number.
template <typename T>
__device__ void ActivateBlock(const ActivateParams& p, std::int64_t task) {
  const std::int64_t blocks = p.blocks();
  const bool has_task = task < p.tasks();  // all lanes stay, to exchange maxima
  const std::int64_t row = has_task ? task / blocks : 0;
  const std::int64_t block = has_task ? task % blocks : 0;
  const int lane = static_cast<int>(threadIdx.x) % kQuantizeLanes;
  const std::int64_t first = block * kValuesPerScale + lane * kQuantizeWidth;
  const bool has_values = has_task && first < p.gate.cols;
  float values[kQuantizeWidth] = {};
  if (has_values) {
    const auto gates = LoadPack<kQuantizeWidth>(static_cast<const T*>(p.gate.data) +
                                                row * p.gate.row_stride + first);
    const auto ups =
        LoadPack<kQuantizeWidth>(static_cast<const T*>(p.up.data) + row * p.up.row_stride + first);
#pragma unroll
    for (int i = 0; i < kQuantizeWidth; ++i) {
      values[i] = Rounded<T>(SwiGluOf(ToFloat(gates.values[i]), ToFloat(ups.values[i])));
    }
  }
  float scale = 0.0F;
  const auto codes = QuantizeBlock(values, p.y.format, scale);
  if (has_task && lane == 0) {
    p.y.scales.Row(row)[block] = scale;
  }
  if (has_values) {
    StorePack(p.y.values.Row(row) + first, codes);
  }
}

}  // namespace dsa::cuda
