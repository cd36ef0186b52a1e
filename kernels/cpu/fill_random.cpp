#include "kernels/ops/fill_random.h"

#include "kernels/cpu/cpu_backend.h"

#include <cmath>

namespace dsa {
namespace {

void Store(void* data, DataType type, std::int64_t index, float value) {
  switch (type) {
    case DataType::kF32: static_cast<float*>(data)[index] = value; return;
    case DataType::kBf16: static_cast<Bf16*>(data)[index] = ToBf16(value); return;
    case DataType::kFp8E4m3: static_cast<Fp8E4m3*>(data)[index] = ToFp8E4m3(value); return;
    case DataType::kF64: return;  // of no weight
  }
}

}  // namespace

void CpuBackend::FillRandom(const FillRandomParams& params) {
  const float factor = Validate(params);
  pool_.ParallelFor(params.size, [&](std::int64_t first, std::int64_t last, int /*thread*/) {
    for (std::int64_t i = first; i < last; ++i) {
      const auto sum = static_cast<float>(RandomSum(params.seed, params.place.Of(i)));
      Store(params.data, params.type, i, std::fma(sum, factor, params.mean));
    }
  });
}

}  // namespace dsa
