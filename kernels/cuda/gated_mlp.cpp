// GatedMlp: gate and up in one launch, SwiGLU and the fp8 copy of what down reads in the next.
#include "kernels/fused/gated_mlp.h"

#include "kernels/cuda/activate.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/fused/project.h"

namespace dsa {

void CudaBackend::GatedMlp(const GatedMlpParams& params) {
  const AnyMatrix& gate = params.inner.x;
  const cuda::ActivateParams activate{.gate = gate, .up = params.up_output, .y = params.inner.fp8};
  if (!params.down.quantized() || !cuda::ActivateTakes(activate)) {
    Backend::GatedMlp(params);
    return;
  }
  Project({.x = params.x,
           .projections = {{{.weight = params.gate, .y = gate},
                            {.weight = params.up, .y = params.up_output}}}});
  cuda::Activate(activate, stream());
  Multiply(*this, params.inner, params.down, params.y);
}

}  // namespace dsa
