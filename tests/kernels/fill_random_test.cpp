// FillRandom against its equation, and the law that a value depends on seed and index alone.
#include "kernels/ops/fill_random.h"

#include "tests/kernels/reference.h"
#include "tests/kernels/test_backend.h"

#include <cmath>
#include <vector>

namespace dsa::fill_random_test {
namespace {

std::vector<float> Fill(DataType type, std::int64_t size, std::uint64_t seed, float mean,
                        float deviation) {
  Backend& backend = testing::TestBackend();
  auto x =
      testing::DeviceTensor::Poisoned(backend, type, {.rows = 1, .cols = size, .row_stride = size});
  backend.FillRandom({.data = x.View().data,
                      .type = type,
                      .size = size,
                      .seed = seed,
                      .mean = mean,
                      .deviation = deviation});
  backend.Synchronize();
  return x.Download();
}

}  // namespace

TEST_CASE("FillRandom matches its equation", "[kernels][fill_random]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16, DataType::kFp8E4m3);
  const auto size = GENERATE(as<std::int64_t>(), 1, 255, 100'003);
  const float mean = GENERATE(0.0F, 1.0F);
  constexpr float kDeviation = 40.0F;
  constexpr std::uint64_t kSeed = 7;
  CAPTURE(testing::Name(type), size, mean);
  const std::vector<float> x = Fill(type, size, kSeed, mean, kDeviation);
  std::int64_t wrong = 0;
  double sum = 0;
  double squares = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    const std::uint64_t bits = CounterBits(kSeed, static_cast<std::uint64_t>(i));
    double n = -131070.0;
    for (int part = 0; part < 4; ++part) {
      n += static_cast<double>((bits >> (16 * part)) & 0xFFFFU);
    }
    const auto factor = static_cast<float>(kDeviation * std::sqrt(3.0) / 65536.0);
    const float exact = static_cast<float>(n * double{factor} + double{mean});
    const float value = x[static_cast<std::size_t>(i)];
    const float expected = type == DataType::kFp8E4m3 ? ToFloat(ToFp8E4m3(exact))
                           : type == DataType::kBf16  ? ToFloat(ToBf16(exact))
                                                      : exact;
    wrong += value != expected ? 1 : 0;
    sum += value;
    squares += double{value} * value;
  }
  CHECK(wrong == 0);
  if (size > 1000) {
    const double average = sum / static_cast<double>(size);
    CHECK(std::fabs(average - mean) < 5 * kDeviation / std::sqrt(static_cast<double>(size)));
    CHECK(std::sqrt(squares / static_cast<double>(size) - average * average) ==
          Approx(kDeviation).epsilon(0.01));
  }
}

TEST_CASE("FillRandom without deviation is a constant; another seed gives other values",
          "[kernels][fill_random]") {
  for (const float value : Fill(DataType::kF32, 300, 3, 0.25F, 0.0F)) {
    REQUIRE(value == 0.25F);
  }
  CHECK(Fill(DataType::kF32, 100, 3, 0.0F, 1.0F) != Fill(DataType::kF32, 100, 4, 0.0F, 1.0F));
  CHECK(Fill(DataType::kBf16, 100, 3, 0.0F, 1.0F) == Fill(DataType::kBf16, 100, 3, 0.0F, 1.0F));
}

}  // namespace dsa::fill_random_test
