#include "kernels/ops/quantize_fp8.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"

namespace dsa {

void CpuBackend::Compute(const QuantizeFp8Params& params) {
  const auto extents = Validate(params);
  const CpuScratch& scratch = ScratchFor(extents.tokens);
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int thread) {
    float* values = scratch.Row(thread, extents.cols);
    for (std::int64_t t = first; t < last; ++t) {
      LoadRow(RowOf(params.x, t), params.x.type, extents.cols, values);
      QuantizeRow(values, extents.cols, params.scale_format,
                  {.values = params.values.Row(t), .scales = params.scales.Row(t)});
    }
  });
}

}  // namespace dsa
