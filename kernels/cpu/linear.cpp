//   y[t, n] = round(x[t] . W[n])
#include "kernels/ops/linear.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/scratch.h"

namespace dsa {

void CpuBackend::Compute(const LinearParams& params) {
  const auto extents = Validate(params);
  const CpuScratch& scratch = ScratchFor(extents.tokens);
  const MatmulProblem problem{
      .x = {.data = params.x.data, .type = params.x.type, .row_stride = params.x.row_stride},
      .weight = {.data = params.weight.data,
                 .type = params.weight.type,
                 .row_stride = params.weight.row_stride},
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
