#include "kernels/ops/expand_value.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/rows.h"
#include "kernels/kv_layout.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileValues = 64;

// Rows first .. last - 1 of one head.
template <typename T>
void ExpandTile(const ExpandValueParams& params, const T* w_uv, std::int64_t head,
                std::int64_t first, std::int64_t last) {
  const ConstAnyTensor3& latents = params.o_latent;
  const AnyTensor3& target = params.o;
  float inputs[kTileRows * kLatentValues];
  for (std::int64_t row = first; row < last; ++row) {
    const std::int64_t offset = row * latents.row_stride + head * latents.head_stride;
    LoadRow(Offset(latents.data, latents.type, offset), latents.type, kLatentValues,
            inputs + (row - first) * kLatentValues);
  }
  float values[kTileRows * kTileValues];
  for (std::int64_t v = 0; v < target.cols; v += kTileValues) {
    const std::int64_t count = std::min(kTileValues, target.cols - v);
    const cpu::DotShape shape = {.rows = last - first,
                                 .cols = count,
                                 .n = kLatentValues,
                                 .a_stride = kLatentValues,
                                 .b_stride = params.w_uv.head_stride,
                                 .out_stride = kTileValues};
    const T* const weights = w_uv + head * params.w_uv.row_stride + v * params.w_uv.head_stride;
    cpu::DotMatrix(shape, inputs, weights, cpu::EveryRow{}, values);
    for (std::int64_t row = first; row < last; ++row) {
      const std::int64_t offset = row * target.row_stride + head * target.head_stride + v;
      StoreRow(values + (row - first) * kTileValues, count,
               Offset(target.data, target.type, offset), target.type);
    }
  }
}

}  // namespace

void CpuBackend::ExpandValue(const ExpandValueParams& params) {
  const ExpandValueExtents extents = Validate(params);
  const std::int64_t tiles = (extents.tokens + kTileRows - 1) / kTileRows;
  pool_.ParallelFor(tiles * extents.heads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t item = first; item < last; ++item) {
      const std::int64_t row = item % tiles * kTileRows;
      const std::int64_t row_end = std::min(row + kTileRows, extents.tokens);
      if (params.w_uv.type == DataType::kF32) {
        ExpandTile(params, static_cast<const float*>(params.w_uv.data), item / tiles, row, row_end);
      } else {
        ExpandTile(params, static_cast<const Bf16*>(params.w_uv.data), item / tiles, row, row_end);
      }
    }
  });
}

}  // namespace dsa
