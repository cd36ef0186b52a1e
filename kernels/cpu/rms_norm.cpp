#include "kernels/ops/rms_norm.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/pairwise_sum.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"

#include <cmath>

namespace dsa {
namespace {

// h = x + residual into `h`, rounded into the residual.
template <typename T>
void AddResidual(const T* x, T* residual, std::int64_t hidden, float* h) {
  for (std::int64_t d = 0; d < hidden; d += kLanes) {
    F32x8 value = Load8(x + d);
    if (residual != nullptr) {
      value = value + Load8(residual + d);
      Store8(residual + d, value);
    }
    Store8(h + d, value);
  }
}

template <typename T>
void NormaliseRow(const RmsNormParams& params, std::int64_t row, std::int64_t hidden, float* h) {
  const T* x = static_cast<const T*>(RowOf(params.x, row));
  T* residual =
      params.residual.data == nullptr ? nullptr : static_cast<T*>(RowOf(params.residual, row));
  T* y = static_cast<T*>(RowOf(params.y, row));
  AddResidual(x, residual, hidden, h);
  const float sum = cpu::PairwiseSum<true>(h, hidden);
  const F32x8 root = F32x8::All(std::sqrt(sum / static_cast<float>(hidden) + params.eps));
  for (std::int64_t d = 0; d < hidden; d += kLanes) {
    Store8(y + d, Load8(h + d) / root * Load8(params.weight.data + d));
  }
}

}  // namespace

void CpuBackend::Compute(const RmsNormParams& params) {
  const auto extents = Validate(params);
  const CpuScratch& scratch = ScratchFor(extents.tokens);
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int thread) {
    float* h = scratch.Row(thread, extents.hidden);
    for (std::int64_t t = first; t < last; ++t) {
      if (params.x.type == DataType::kF32) {
        NormaliseRow<float>(params, t, extents.hidden, h);
      } else {
        NormaliseRow<Bf16>(params, t, extents.hidden, h);
      }
    }
  });
}

}  // namespace dsa
