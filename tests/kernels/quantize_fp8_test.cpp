// QuantizeFp8 is exact: every bit is compared, on every backend.
#include "kernels/ops/quantize_fp8.h"

#include "tests/kernels/reference.h"
#include "tests/kernels/test_backend.h"

#include <cmath>
#include <limits>

namespace dsa::quantize_fp8_test {
namespace {

struct Output {
  std::vector<float> values;
  std::vector<float> scales;
};

Output Run(DataType type, std::int64_t tokens, const std::vector<float>& x, ScaleFormat format) {
  const std::int64_t cols = tokens == 0 ? 128 : static_cast<std::int64_t>(x.size()) / tokens;
  const std::int64_t blocks = Fp8Blocks(cols);
  const testing::DeviceTensor device_x(type, {.rows = tokens, .cols = cols, .row_stride = cols + 8},
                                       x);
  const auto values = testing::DeviceArray<Fp8E4m3>::Poisoned(tokens * cols);
  const auto scales = testing::DeviceArray<float>::Poisoned(tokens * blocks);
  testing::TestBackend().QuantizeFp8({.x = device_x.View(),
                                      .values = values.AsMatrix(tokens, cols),
                                      .scales = scales.AsMatrix(tokens, blocks),
                                      .scale_format = format});
  Output output{.values = {}, .scales = scales.Download()};
  for (const Fp8E4m3 value : values.Download()) {
    output.values.push_back(ToFloat(value));
  }
  return output;
}

void CheckMatches(DataType type, std::int64_t tokens, const std::vector<float>& x,
                  ScaleFormat format) {
  const auto cols = static_cast<std::int64_t>(x.size()) / tokens;
  const Output output = Run(type, tokens, x, format);
  const auto expected = testing::Quantized(testing::ToDouble(tokens, cols, x), format);
  CHECK(output.scales == testing::ToFloats(expected.scales));
  CHECK(output.values == testing::ToFloats(expected.values));
}

}  // namespace

TEST_CASE("QuantizeFp8 matches its equation exactly", "[kernels][quantize_fp8]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(ScaleFormat::kPlain, ScaleFormat::kPowerOfTwo);
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 7);
  const auto cols = GENERATE(as<std::int64_t>(), 1, 96, 128, 130, 192, 1536, 7168);
  // 1e-6 lies below the floor of the scale, 1e4 far above 448.
  const float deviation = GENERATE(1e-6F, 1e-3F, 1.0F, 1e4F);
  CAPTURE(testing::Name(type), static_cast<int>(format), tokens, cols, deviation);
  CheckMatches(type, tokens,
               testing::RoundedTo(type, testing::RandomFloat(tokens * cols, deviation, 1)), format);
}

TEST_CASE("QuantizeFp8 divides, and rounds ties to even", "[kernels][quantize_fp8]") {
  const auto format = GENERATE(ScaleFormat::kPlain, ScaleFormat::kPowerOfTwo);
  CAPTURE(static_cast<int>(format));
  // In every block one value fixes the scale; the others stand at, or one rounding beside, a border
  // between two fp8 values, where a product with the reciprocal goes astray.
  std::vector<float> x;
  const std::vector<float> largest = testing::RandomFloat(200, 1.0F, 5);
  for (std::size_t block = 0; block < largest.size(); ++block) {
    const float amax = std::fabs(largest[block]) + 0.5F;
    const float scale = amax / 448.0F;
    x.push_back(amax);
    for (int i = 1; i < 128; ++i) {
      const float border =
          std::ldexp(1.0F + (2.0F * static_cast<float>(i % 8) + 1.0F) / 16.0F, i / 8 % 12 - 4);
      x.push_back((i % 2 == 0 ? border : -border) * scale);
    }
  }
  CheckMatches(DataType::kF32, 10, x, format);
  CheckMatches(DataType::kBf16, 10, testing::RoundedTo(DataType::kBf16, x), format);
}

TEST_CASE("QuantizeFp8 of zeros, and of no rows", "[kernels][quantize_fp8]") {
  std::vector<float> x(130, 0.0F);
  x[3] = -0.0F;
  const Output output = Run(DataType::kF32, 1, x, ScaleFormat::kPowerOfTwo);
  CHECK(output.values == std::vector<float>(130, 0.0F));
  CHECK(std::signbit(output.values[3]));
  CHECK(output.scales == std::vector<float>(2, 0x1p-22F));
  CHECK(Run(DataType::kF32, 0, {}, ScaleFormat::kPlain).values.empty());
}

TEST_CASE("QuantizeFp8 carries NaN on", "[kernels][quantize_fp8]") {
  const auto bad =
      GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
  const auto format = GENERATE(ScaleFormat::kPlain, ScaleFormat::kPowerOfTwo);
  const auto at = GENERATE(as<std::size_t>(), 0, 5, 127, 129);
  std::vector<float> x(130, 1.0F);
  x[at] = bad;
  const Output output = Run(DataType::kF32, 1, x, format);
  CHECK(std::isnan(output.values[at]));
  // The other block is not touched.
  const std::size_t other = at < 128 ? 129 : 0;
  CHECK(output.values[other] * output.scales[other / 128] == Approx(1.0).epsilon(0.07));
}

}  // namespace dsa::quantize_fp8_test
