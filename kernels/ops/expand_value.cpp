#include "kernels/ops/expand_value.h"

#include "common/check.h"
#include "common/shape.h"
#include "kernels/kv_layout.h"

namespace dsa {
namespace {

void CheckScales(const ExpandValueParams& params) {
  const ConstAnyTensor3& w = params.w_uv;
  const Matrix<const float>& scales = params.w_uv_scales;
  if (w.type != DataType::kFp8E4m3) {
    DSA_CHECK(scales.data == nullptr, "ExpandValue: w_uv_scales beside w_uv of type {}, not fp8",
              static_cast<int>(w.type));
    return;
  }
  DSA_CHECK(params.o_latent.type == DataType::kBf16,
            "ExpandValue: fp8 w_uv beside o_latent of type {}, not bf16",
            static_cast<int>(params.o_latent.type));
  DSA_CHECK(w.heads % kValuesPerScale == 0, "ExpandValue: fp8 w_uv with V={}, no multiple of {}",
            w.heads, kValuesPerScale);
  DSA_CHECK(w.rows <= 1 || w.row_stride == w.heads * w.head_stride,
            "ExpandValue: heads of fp8 w_uv are {} values apart, expected {}", w.row_stride,
            w.heads * w.head_stride);
  const std::int64_t rows = w.rows * w.heads / kValuesPerScale;
  constexpr std::int64_t kCols = kLatentValues / kValuesPerScale;
  DSA_CHECK(scales.data != nullptr && scales.rows == rows && scales.cols == kCols &&
                scales.row_stride == kCols,
            "ExpandValue: w_uv_scales [{}, {}] with stride {}, expected [{}, {}], contiguous",
            scales.rows, scales.cols, scales.row_stride, rows, kCols);
}

}  // namespace

ExpandValueExtents Validate(const ExpandValueParams& params) {
  ShapeBinder shapes("ExpandValue");
  const auto [tokens, heads, latent] = shapes.Match("o_latent", params.o_latent, "T", "H", "L");
  shapes.Match("w_uv", params.w_uv, "H", "V", "L");
  shapes.Match("o", params.o, "T", "H", "V");
  const std::int64_t value = params.o.cols;
  DSA_CHECK(params.o.type == params.o_latent.type, "ExpandValue: o has type {}, o_latent {}",
            static_cast<int>(params.o.type), static_cast<int>(params.o_latent.type));
  DSA_CHECK(params.o_latent.type != DataType::kFp8E4m3, "ExpandValue: o_latent is fp8");
  DSA_CHECK(latent == kLatentValues, "ExpandValue: L={}, expected {}", latent, kLatentValues);
  CheckScales(params);
  return {.tokens = tokens, .heads = heads, .value = value, .latent = latent};
}

}  // namespace dsa
