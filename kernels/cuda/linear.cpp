// Linear and BlockScaledLinear: kernels for the few rows of a decode step (small_product.cuh,
// narrow_product.cuh), cuBLASLt, or a plain kernel (linear.cu), where the types of x and weight
// differ, and for small weights of odd extents that cuBLASLt does not take.  A large weight that it
// does not take would be a hundred times slower than it should be: that is refused, never run.
#include "kernels/ops/linear.h"

#include "common/check.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/narrow_product.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/small_product.h"
#include "kernels/ops/block_scaled_linear.h"

namespace dsa {

void CudaBackend::Linear(const LinearParams& params) {
  const LinearExtents extents = Validate(params);
  if (extents.tokens == 0 || extents.outputs == 0) {
    return;
  }
  if (cuda::NarrowProductTakes(params)) {
    cuda::NarrowProduct(params, state_->stream);
    return;
  }
  if (params.x.type == params.weight.type && state_->gemm.Multiply(params, state_->stream)) {
    return;
  }
  cuda::PlainLinear(params, state_->stream);
}

void CudaBackend::BlockScaledLinear(const BlockScaledLinearParams& params) {
  const LinearExtents extents = Validate(params);
  if (extents.tokens == 0 || extents.outputs == 0) {
    return;
  }
  if (cuda::SmallProductTakes(params)) {
    cuda::SmallProducts({&params, 1}, nullptr, state_->stream);
    return;
  }
  DSA_CHECK(state_->scratch_reserved, "BlockScaledLinear: before ReserveScratch");
  if (state_->gemm.MultiplyBlockScaled(params, state_->stream)) {
    return;
  }
  cuda::PlainBlockScaledLinear(params, state_->stream);
}

}  // namespace dsa
