#include "kernels/fused/gated_mlp.h"

#include "kernels/backend.h"
#include "kernels/ops/swiglu.h"

namespace dsa {

void Backend::GatedMlp(const GatedMlpParams& params) {
  const AnyMatrix& inner = params.inner.x;
  Multiply(*this, params.x, params.gate, inner);
  Multiply(*this, params.x, params.up, params.up_output);
  SwiGlu({.gate = inner, .up = params.up_output, .y = inner});
  Quantize(*this, params.inner);
  Multiply(*this, params.inner, params.down, params.y);
}

}  // namespace dsa
