#include "kernels/fused/add_norm.h"

#include "kernels/backend.h"
#include "kernels/comm/collectives.h"
#include "kernels/ops/rms_norm.h"

namespace dsa {

void Backend::AddNorm(const AddNormParams& params) {
  if (params.partial.data != nullptr) {
    AllReduce({.partial = params.partial, .sum = params.x});
  }
  RmsNorm({.x = params.x,
           .residual = params.residual,
           .weight = params.weight,
           .y = params.y.x,
           .eps = params.eps});
  Quantize(*this, params.y);
}

}  // namespace dsa
