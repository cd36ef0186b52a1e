#include "kernels/fused/activation.h"

#include "common/check.h"
#include "common/view_parts.h"
#include "kernels/backend.h"
#include "kernels/ops/linear.h"

namespace dsa {

Activation RowsOf(const Activation& activation, std::int64_t first, std::int64_t count) {
  Activation rows = activation;
  rows.x = RowsOfAny(activation.x, first, count);
  if (activation.fp8.values.data != nullptr) {
    rows.fp8.values = RowsOf(activation.fp8.values, first, count);
    rows.fp8.scales = RowsOf(activation.fp8.scales, first, count);
  }
  return rows;
}

BlockScaledLinearParams ScaledProduct(const Activation& x, const LinearWeight& weight,
                                      const AnyMatrix& y) {
  const ConstAnyMatrix& stored = weight.weight;
  DSA_CHECK(x.fp8.values.data != nullptr, "an fp8 weight of {} x {}, no fp8 activation",
            stored.rows, stored.cols);
  return {.x = AsConst(x.fp8.values),
          .x_scales = AsConst(x.fp8.scales),
          .weight = {.data = static_cast<const Fp8E4m3*>(stored.data),
                     .rows = stored.rows,
                     .cols = stored.cols,
                     .row_stride = stored.row_stride},
          .weight_scales = weight.scales,
          .y = y};
}

void Multiply(Backend& backend, const Activation& x, const LinearWeight& weight,
              const AnyMatrix& y) {
  if (!weight.quantized()) {
    backend.Linear({.x = x.x, .weight = weight.weight, .y = y});
    return;
  }
  backend.BlockScaledLinear(ScaledProduct(x, weight, y));
}

void Quantize(Backend& backend, const Activation& activation) {
  if (activation.fp8.values.data != nullptr) {
    backend.QuantizeFp8({.x = activation.x,
                         .values = activation.fp8.values,
                         .scales = activation.fp8.scales,
                         .scale_format = activation.fp8.format});
  }
}

}  // namespace dsa
