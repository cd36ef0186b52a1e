// RmsNorm against a double-precision restatement of its equation.  Inputs are kept away from unit
// variance, where leaving out the normalisation would go unseen, and small enough in one case that
// eps matters.
#include "kernels/ops/rms_norm.h"

#include "tests/kernels/reference.h"
#include "tests/kernels/test_backend.h"

#include <cmath>

namespace dsa::rms_norm_test {
namespace {

struct Case {
  std::int64_t tokens;
  std::int64_t hidden;
  DataType type;
};

// y of the rows of h.
std::vector<double> Expected(const std::vector<double>& h, const std::vector<float>& weight,
                             double eps) {
  std::vector<double> y(h.size());
  const std::size_t hidden = weight.size();
  for (std::size_t first = 0; first < h.size(); first += hidden) {
    double mean_square = 0.0;
    for (std::size_t d = 0; d < hidden; ++d) {
      mean_square += h[first + d] * h[first + d] / static_cast<double>(hidden);
    }
    for (std::size_t d = 0; d < hidden; ++d) {
      y[first + d] = h[first + d] / std::sqrt(mean_square + eps) * weight[d];
    }
  }
  return y;
}

}  // namespace

TEST_CASE("RmsNorm matches its equation", "[kernels][rms_norm]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 0, 1, 7);
  const auto hidden = GENERATE(as<std::int64_t>(), 8, 392, 512, 1536, 7168);
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const bool with_residual = GENERATE(false, true);
  const float deviation = GENERATE(1e-3F, 3.0F);
  CAPTURE(tokens, hidden, testing::Name(type), with_residual, deviation);
  const auto shape = testing::Dense(tokens, hidden);

  const auto x =
      testing::RoundedTo(type, testing::RandomFloat(shape.rows * shape.cols, deviation, 1));
  const auto residual =
      testing::RoundedTo(type, testing::RandomFloat(shape.rows * shape.cols, deviation, 2));
  const std::vector<float> weight = testing::RandomFloat(hidden, 1.0F, 3);

  const testing::DeviceTensor device_x(type, shape, x);
  const testing::DeviceTensor device_residual(type, shape, residual);
  const testing::DeviceArray<float> device_weight(weight);
  const auto device_y = testing::DeviceTensor::Poisoned(type, shape);
  testing::TestBackend().RmsNorm({
      .x = device_x.View(),
      .residual = with_residual ? device_residual.View() : AnyMatrix{},
      .weight = device_weight.AsConstVector(),
      .y = device_y.View(),
      .eps = 1e-6F,
  });

  std::vector<double> h(x.begin(), x.end());
  if (with_residual) {
    for (std::size_t i = 0; i < h.size(); ++i) {
      h[i] += residual[i];
    }
  }
  const auto y = device_y.Download();
  const auto expected = Expected(h, weight, 1e-6);
  CHECK(testing::RelativeError(y, expected) < testing::Tolerance(type));
  if (type == DataType::kBf16) {  // rounded once, at the end
    const std::vector<float> rounded(expected.begin(), expected.end());
    CHECK(testing::ShareEqual(y, testing::RoundedTo(type, rounded)) > 0.99);
  }
  CHECK(device_x.Download() == x);
  if (with_residual) {
    std::vector<float> rounded(h.begin(), h.end());
    CHECK(device_residual.Download() == testing::RoundedTo(type, rounded));
  }
}

}  // namespace dsa::rms_norm_test
