#include "kernels/ops/rope.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/rotate.h"

namespace dsa {
namespace {

template <typename T>
void RotateRow(const RopeParams& params, std::int64_t row) {
  const std::int32_t position = params.positions.data[row];
  T* const x = static_cast<T*>(params.x.data) + row * params.x.row_stride;
  for (std::int64_t head = 0; head < params.x.heads; ++head) {
    cpu::RotateHead(x + head * params.x.head_stride, params.table, position, params.layout);
  }
}

}  // namespace

void CpuBackend::Compute(const RopeParams& params) {
  const RopeExtents extents = Validate(params);
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t row = first; row < last; ++row) {
      if (params.x.type == DataType::kF32) {
        RotateRow<float>(params, row);
      } else {
        RotateRow<Bf16>(params, row);
      }
    }
  });
}

}  // namespace dsa
