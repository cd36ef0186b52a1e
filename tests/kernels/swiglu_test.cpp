// SwiGlu against its equation.
#include "kernels/ops/swiglu.h"

#include "tests/kernels/reference.h"
#include "tests/kernels/test_backend.h"

#include <cmath>
#include <limits>

namespace dsa::swiglu_test {
namespace {

enum class Target { kOwn, kGate, kUp };

std::vector<float> Run(DataType type, testing::TensorShape shape, Target target,
                       const std::vector<float>& gate, const std::vector<float>& up) {
  const testing::DeviceTensor device_gate(type, shape, gate);
  const testing::DeviceTensor device_up(type, shape, up);
  const auto own = testing::DeviceTensor::Poisoned(type, shape);
  const testing::DeviceTensor& y = target == Target::kOwn    ? own
                                   : target == Target::kGate ? device_gate
                                                             : device_up;
  testing::TestBackend().SwiGlu(
      {.gate = device_gate.View(), .up = device_up.View(), .y = y.View()});
  return y.Download();
}

}  // namespace

TEST_CASE("SwiGlu matches its equation", "[kernels][swiglu]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto tokens = GENERATE(as<std::int64_t>(), 0, 1, 7);
  const auto width = GENERATE(as<std::int64_t>(), 1, 130, 512, 2048);
  const auto target = GENERATE(Target::kOwn, Target::kGate, Target::kUp);
  const float deviation = GENERATE(0.5F, 20.0F);
  CAPTURE(testing::Name(type), tokens, width, static_cast<int>(target), deviation);
  const testing::TensorShape shape{.rows = tokens, .cols = width, .row_stride = width + 8};
  const auto gate = testing::RoundedTo(type, testing::RandomFloat(tokens * width, deviation, 1));
  const auto up = testing::RoundedTo(type, testing::RandomFloat(tokens * width, 2.0F, 2));

  const auto y = Run(type, shape, target, gate, up);

  std::vector<double> expected;
  for (std::size_t i = 0; i < gate.size(); ++i) {
    expected.push_back(gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i]);
  }
  CHECK(testing::RelativeError(y, expected) < testing::Tolerance(type));
  const std::vector<float> rounded(expected.begin(), expected.end());
  if (type == DataType::kBf16) {
    CHECK(testing::ShareEqual(y, testing::RoundedTo(type, rounded)) > 0.99);
  }
}

TEST_CASE("SwiGlu at the ends of the range", "[kernels][swiglu]") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> gate = {-1000.0F, 1000.0F, 0.0F, kInfinity, NAN, 1.0F, -88.0F, 88.0F};
  const std::vector<float> up = {3.0F, 3.0F, 3.0F, 2.0F, 1.0F, NAN, 1.0F, 1.0F};
  const auto y = Run(DataType::kF32, testing::Dense(1, 8), Target::kOwn, gate, up);
  CHECK(y[0] == 0.0F);
  CHECK(y[1] == 3000.0F);
  CHECK(y[2] == 0.0F);
  CHECK(y[3] == kInfinity);
  CHECK(std::isnan(y[4]));
  CHECK(std::isnan(y[5]));
  CHECK(y[6] == Approx(-88.0 * std::exp(-88.0)).epsilon(1e-5));
  CHECK(y[7] == 88.0F);
}

}  // namespace dsa::swiglu_test
