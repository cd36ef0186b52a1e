#include "kernels/ops/fill_random.h"

#include "common/check.h"

#include <cmath>

namespace dsa {

float Validate(const FillRandomParams& params) {
  DSA_CHECK(params.size >= 0, "FillRandom: size={}", params.size);
  DSA_CHECK(params.place.cols > 0, "FillRandom: rows of {} values", params.place.cols);
  DSA_CHECK(std::isfinite(params.mean), "FillRandom: mean={}", double{params.mean});
  DSA_CHECK(std::isfinite(params.deviation) && params.deviation >= 0, "FillRandom: deviation={}",
            double{params.deviation});
  return static_cast<float>(params.deviation * std::sqrt(3.0) / 65536.0);
}

}  // namespace dsa
