//   y[t, n] = round(sum over k of (x[t, k] * x_scale) * (W[n, k] * w_scale))
//
// A scale per 128 inputs of a row, and one per 128 x 128 weights.
#include "kernels/ops/block_scaled_linear.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/scratch.h"

namespace dsa {

void CpuBackend::Compute(const BlockScaledLinearParams& params) {
  const auto extents = Validate(params);
  const CpuScratch& scratch = ScratchFor(extents.tokens);
  const MatmulProblem problem{
      .x = {.data = params.x.data,
            .type = DataType::kFp8E4m3,
            .row_stride = params.x.row_stride,
            .scales = params.x_scales.data,
            .scale_stride = params.x_scales.row_stride},
      .weight = {.data = params.weight.data,
                 .type = DataType::kFp8E4m3,
                 .row_stride = params.weight.row_stride,
                 .scales = params.weight_scales.data,
                 .scale_stride = params.weight_scales.row_stride},
      .y = params.y.data,
      .y_type = params.y.type,
      .y_row_stride = params.y.row_stride,
      .rows = extents.tokens,
      .inputs = extents.inputs,
      .outputs = extents.outputs,
  };
  pool_.ParallelFor(MatmulUnits(problem), [&](std::int64_t first, std::int64_t last, int thread) {
    RunMatmulUnits(problem, first, last, scratch.matmul[static_cast<std::size_t>(thread)]);
  });
}

}  // namespace dsa
