// Linear and BlockScaledLinear against double-precision products, and the law that a row's bits
// depend on nothing but the row and the weight.
#include "kernels/ops/linear.h"

#include "kernels/ops/block_scaled_linear.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/test_backend.h"

#include <cmath>
#include <limits>

namespace dsa::linear_test {
namespace {

struct Extents {
  std::int64_t outputs;
  std::int64_t inputs;
};

struct Types {
  DataType x;
  DataType weight;
  DataType y;
};

// y of rows x [tokens, inputs].
testing::DeviceTensor RunLinear(Backend& backend, Types types, Extents extents,
                                const std::vector<float>& x, const std::vector<float>& weight) {
  const std::int64_t tokens = static_cast<std::int64_t>(x.size()) / extents.inputs;
  const testing::DeviceTensor device_x(
      backend, types.x, {.rows = tokens, .cols = extents.inputs, .row_stride = extents.inputs + 8},
      x);
  const testing::DeviceTensor device_weight(
      backend, types.weight,
      {.rows = extents.outputs, .cols = extents.inputs, .row_stride = extents.inputs}, weight);
  auto y = testing::DeviceTensor::Poisoned(
      backend, types.y,
      {.rows = tokens, .cols = extents.outputs, .row_stride = extents.outputs + 8});
  backend.Linear({.x = device_x.View(), .weight = device_weight.View(), .y = y.View()});
  backend.Synchronize();
  return y;
}

struct Fp8Case {
  testing::QuantizedMatrix x;
  testing::QuantizedMatrix weight;
};

testing::DeviceTensor RunBlockScaled(Backend& backend, DataType type, const Fp8Case& c) {
  const auto& [x, weight] = c;
  const testing::DeviceArray<Fp8E4m3> values(backend, testing::ToFp8(x.values));
  const testing::DeviceArray<float> scales(backend, testing::ToFloats(x.scales));
  const testing::DeviceArray<Fp8E4m3> weights(backend, testing::ToFp8(weight.values));
  const testing::DeviceArray<float> weight_scales(backend, testing::ToFloats(weight.scales));
  // Of some shape, aligned to two values and no more: whoever stores more at once must look.
  const std::int64_t beyond = weight.values.rows == 8512 ? 2 : 8;
  auto y = testing::DeviceTensor::Poisoned(backend, type,
                                           {.rows = x.values.rows,
                                            .cols = weight.values.rows,
                                            .row_stride = weight.values.rows + beyond});
  backend.BlockScaledLinear(
      {.x = values.AsConstMatrix(x.values.rows, x.values.cols),
       .x_scales = scales.AsConstMatrix(x.scales.rows, x.scales.cols),
       .weight = weights.AsConstMatrix(weight.values.rows, weight.values.cols),
       .weight_scales = weight_scales.AsConstMatrix(weight.scales.rows, weight.scales.cols),
       .y = y.View()});
  backend.Synchronize();
  return y;
}

Fp8Case RandomFp8Case(std::int64_t tokens, Extents extents, ScaleFormat format) {
  const auto x = testing::ToDouble(tokens, extents.inputs,
                                   testing::RandomFloat(tokens * extents.inputs, 1.0F, 1));
  return {.x = testing::Quantized(x, format),
          .weight = testing::RandomFp8Weight(extents.outputs, extents.inputs, format, 2)};
}

testing::QuantizedMatrix OneRow(const testing::QuantizedMatrix& x, std::int64_t row) {
  const auto slice = [row](const testing::DoubleMatrix& m) {
    return testing::DoubleMatrix{
        .rows = 1,
        .cols = m.cols,
        .values = {m.values.begin() + row * m.cols, m.values.begin() + (row + 1) * m.cols}};
  };
  return {.values = slice(x.values), .scales = slice(x.scales)};
}

std::vector<std::uint8_t> RowBits(const std::vector<std::uint8_t>& bits, std::int64_t row,
                                  std::int64_t rows) {
  const auto size = static_cast<std::int64_t>(bits.size()) / rows;
  return {bits.begin() + row * size, bits.begin() + (row + 1) * size};
}

}  // namespace

TEST_CASE("Linear matches its equation", "[kernels][linear]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 2, 50, 97);
  const auto extents = GENERATE(
      values<Extents>({{1, 8}, {5, 130}, {33, 96}, {16, 64}, {130, 192}, {64, 7168}, {257, 1536}}));
  const auto types = GENERATE(values<Types>({
      {DataType::kF32, DataType::kF32, DataType::kF32},
      {DataType::kBf16, DataType::kBf16, DataType::kF32},
      {DataType::kBf16, DataType::kBf16, DataType::kBf16},
      {DataType::kF32, DataType::kBf16, DataType::kF32},
      {DataType::kBf16, DataType::kF32, DataType::kBf16},
  }));
  CAPTURE(tokens, extents.outputs, extents.inputs, testing::Name(types.x),
          testing::Name(types.weight), testing::Name(types.y));
  const auto x =
      testing::RoundedTo(types.x, testing::RandomFloat(tokens * extents.inputs, 1.0F, 1));
  const auto weight = testing::RoundedTo(
      types.weight, testing::RandomFloat(extents.outputs * extents.inputs, 0.1F, 2));

  const auto y = RunLinear(testing::TestBackend(), types, extents, x, weight).Download();

  const auto expected =
      testing::Product(testing::ToDouble(tokens, extents.inputs, x),
                       testing::ToDouble(extents.outputs, extents.inputs, weight));
  CHECK(testing::RelativeError(y, expected.values) < testing::Tolerance(types.y));
  if (types.y == DataType::kBf16) {  // rounded once: only near-ties may fall to the other side
    CHECK(testing::ShareEqual(y, testing::ToFloats(testing::Rounded(types.y, expected))) > 0.99);
  }
}

TEST_CASE("BlockScaledLinear matches its equation", "[kernels][block_scaled_linear]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 2, 50, 97);
  const auto extents = GENERATE(values<Extents>(
      {{1, 1}, {5, 130}, {33, 96}, {130, 192}, {64, 7168}, {257, 1536}, {384, 384}}));
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(ScaleFormat::kPlain, ScaleFormat::kPowerOfTwo);
  CAPTURE(tokens, extents.outputs, extents.inputs, testing::Name(type), static_cast<int>(format));
  const Fp8Case c = RandomFp8Case(tokens, extents, format);

  const auto y = RunBlockScaled(testing::TestBackend(), type, c).Download();

  const auto expected =
      testing::Product(testing::Dequantized(c.x, 1), testing::Dequantized(c.weight, 128));
  CHECK(testing::RelativeError(y, expected.values) < testing::Fp8ProductTolerance(type));
  // With plain scales inputs and weights are rounded when they are scaled, which only bf16 hides.
  if (type == DataType::kBf16 || format == ScaleFormat::kPowerOfTwo) {
    CHECK(testing::ShareEqual(y, testing::ToFloats(testing::Rounded(type, expected))) >
          testing::Fp8ProductShareEqual(type));
  }
}

TEST_CASE("A linear row's bits do not depend on batch or threads", "[kernels][linear]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto extents = GENERATE(values<Extents>({{70, 130}, {6, 1536}, {130, 8}}));
  constexpr std::int64_t kTokens = 101;
  CAPTURE(testing::Name(type), extents.outputs, extents.inputs);
  const Types types{.x = type, .weight = type, .y = DataType::kF32};
  const auto x = testing::RandomFloat(kTokens * extents.inputs, 1.0F, 1);
  const auto weight = testing::RandomFloat(extents.outputs * extents.inputs, 0.1F, 2);
  const auto bits = RunLinear(testing::TestBackend(), types, extents, x, weight).DownloadBits();

  for (Backend* variant : testing::BackendVariants()) {
    CHECK(RunLinear(*variant, types, extents, x, weight).DownloadBits() == bits);
  }
  if (!testing::ProductRowsAreIndependent()) {
    return;
  }
  for (const std::int64_t row : {0, 1, 2, 47, 48, 49, 95, 96, 100}) {
    const std::vector<float> alone(x.begin() + row * extents.inputs,
                                   x.begin() + (row + 1) * extents.inputs);
    CHECK(RunLinear(testing::TestBackend(), types, extents, alone, weight).DownloadBits() ==
          RowBits(bits, row, kTokens));
  }
}

TEST_CASE("A block-scaled row's bits do not depend on batch or threads",
          "[kernels][block_scaled_linear]") {
  const auto extents = GENERATE(values<Extents>({{70, 130}, {6, 1536}, {200, 384}}));
  const auto format = GENERATE(ScaleFormat::kPlain, ScaleFormat::kPowerOfTwo);
  constexpr std::int64_t kTokens = 101;
  CAPTURE(extents.outputs, extents.inputs, static_cast<int>(format));
  const Fp8Case c = RandomFp8Case(kTokens, extents, format);
  const auto bits = RunBlockScaled(testing::TestBackend(), DataType::kF32, c).DownloadBits();

  for (Backend* variant : testing::BackendVariants()) {
    CHECK(RunBlockScaled(*variant, DataType::kF32, c).DownloadBits() == bits);
  }
  if (!testing::ProductRowsAreIndependent()) {
    return;
  }
  for (const std::int64_t row : {0, 1, 2, 47, 48, 49, 95, 96, 100}) {
    const Fp8Case alone{.x = OneRow(c.x, row), .weight = c.weight};
    CHECK(RunBlockScaled(testing::TestBackend(), DataType::kF32, alone).DownloadBits() ==
          RowBits(bits, row, kTokens));
  }
}

// A backend may have other ways for few rows of large weights: shapes of every way to divide them.
TEST_CASE("A decode step's products match their equation, each row alone as among others",
          "[kernels][block_scaled_linear]") {
  if (testing::ProductRowsAreIndependent()) {
    return;  // one way for all shapes, which the cases above hold
  }
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 7, 9, 17, 33, 64);
  const auto extents = GENERATE(values<Extents>({{16, 256},
                                                 {576, 512},
                                                 {1040, 384},
                                                 {3200, 128},
                                                 {6400, 256},
                                                 {8512, 128},
                                                 {17024, 128},
                                                 {16960, 1152},
                                                 {6464, 8192},
                                                 {1040, 192},
                                                 {80, 112},
                                                 {1040, 2304},
                                                 {2000, 256},
                                                 {2256, 2304},
                                                 {1808, 4480},
                                                 {3216, 2304},
                                                 {6416, 2304}}));
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  if (extents.inputs == 8192 && tokens > 7 && tokens < 64) {
    return;  // the reference takes seconds
  }
  if ((extents.inputs >= 2304 && extents.inputs < 8192 && tokens < 33) ||
      (extents.inputs == 1152 && tokens > 9)) {
    return;  // as the smaller ones
  }
  const auto format = tokens % 2 == 0 ? ScaleFormat::kPlain : ScaleFormat::kPowerOfTwo;
  CAPTURE(tokens, extents.outputs, extents.inputs, testing::Name(type));
  const Fp8Case c = RandomFp8Case(tokens, extents, format);

  const auto run = RunBlockScaled(testing::TestBackend(), type, c);

  const auto expected =
      testing::Product(testing::Dequantized(c.x, 1), testing::Dequantized(c.weight, 128));
  CHECK(testing::RelativeError(run.Download(), expected.values) <
        testing::Fp8ProductTolerance(type));
  const auto bits = run.DownloadBits();
  for (const std::int64_t row : {std::int64_t{0}, tokens / 2, tokens - 1}) {
    const Fp8Case alone{.x = OneRow(c.x, row), .weight = c.weight};
    CHECK(RunBlockScaled(testing::TestBackend(), type, alone).DownloadBits() ==
          RowBits(bits, row, tokens));
  }
}

TEST_CASE("Every fp8 value is multiplied exactly", "[kernels][block_scaled_linear]") {
  const auto negative = GENERATE(false, true);
  // One row of x that is 1 in one column picks one column of W.
  Fp8Case c{.x = {.values = testing::ToDouble(128, 128, std::vector<float>(128 * 128, 0.0F)),
                  .scales = testing::ToDouble(128, 1, std::vector<float>(128, 1.0F))},
            .weight = {.values = testing::ToDouble(1, 128, std::vector<float>(128, 0.0F)),
                       .scales = testing::ToDouble(1, 1, std::vector<float>(1, 1.0F))}};
  for (int code = 0; code < 127; ++code) {  // 127 is NaN
    c.x.values.At(code, code) = 1.0;
    const int exponent = code >> 3;
    const double fraction = (code & 7) / 8.0;
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -6) : std::ldexp(1.0 + fraction, exponent - 7);
    c.weight.values.At(0, code) = negative ? -magnitude : magnitude;
  }
  const auto y = RunBlockScaled(testing::TestBackend(), DataType::kF32, c).Download();
  CHECK(y == testing::ToFloats(c.weight.values));
}

TEST_CASE("NaN and infinity stay in their row", "[kernels][linear]") {
  const auto bad =
      GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
  const Extents extents{.outputs = 9, .inputs = 136};
  const Types types{.x = DataType::kF32, .weight = DataType::kF32, .y = DataType::kF32};
  std::vector<float> x(7 * 136, 1.0F);
  x[3 * 136 + 135] = bad;
  const auto y =
      RunLinear(testing::TestBackend(), types, extents, x, std::vector<float>(9 * 136, 1.0F))
          .Download();
  for (std::int64_t row = 0; row < 7; ++row) {
    for (std::int64_t n = 0; n < 9; ++n) {
      CHECK(std::isfinite(y[row * 9 + n]) == (row != 3));
    }
  }
  const std::vector<float> quantized_x(128, bad);
  const Fp8Case c{.x = {.values = testing::ToDouble(1, 128, quantized_x),
                        .scales = testing::ToDouble(1, 1, std::vector<float>{1.0F})},
                  .weight = testing::RandomFp8Weight(3, 128, ScaleFormat::kPlain, 1)};
  if (std::isnan(bad)) {
    for (const float value : RunBlockScaled(testing::TestBackend(), DataType::kF32, c).Download()) {
      CHECK(std::isnan(value));
    }
  }
}

TEST_CASE("Linear of no rows writes nothing", "[kernels][linear]") {
  const Types types{.x = DataType::kBf16, .weight = DataType::kBf16, .y = DataType::kBf16};
  CHECK(RunLinear(testing::TestBackend(), types, {.outputs = 8, .inputs = 8}, {},
                  std::vector<float>(64, 1.0F))
            .Download()
            .empty());
}

}  // namespace dsa::linear_test
